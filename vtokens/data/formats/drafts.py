"""Records on their way, whose passages may still lie in a corpus."""

import dataclasses

from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import Fields
from vtokens.data.records import Passage


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
  """A passage named by its id, its text being in a corpus.

  Attributes:
    ids: of the passage; several for a span of which at least one passage must
      be in the corpus.
    score: the retriever's.
    key: where the row names it, for messages.
  """

  ids: tuple[str, ...]
  score: float | None
  key: str


Passages = dict[str, list[Passage | Ref]]


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
  """A record whose passages may still lie in a corpus.

  Attributes:
    id: '' if the row has none.
    dataset: '' if the row has none.
    question: never blank.
    answers: at least one, none blank.
    passages: by retriever, best first.
    notes: what was left out that nobody would miss.
  """

  id: str
  dataset: str
  question: str
  answers: tuple[str, ...]
  passages: Passages
  notes: tuple[str, ...] = ()


def answers(fields: Fields) -> tuple[str, ...]:
  """Those under `answers` or `target`; of both, `target` comes first.

  FiD and Atlas have both for TriviaQA: aliases, and the one to train on.
  """
  if 'answers' in fields and 'target' in fields:
    texts = fields.texts('target') + fields.texts('answers')
    return fields_lib.unique(texts)
  return fields.texts(fields.only('answers', 'target'))


def make(
  fields: Fields, key: str, *, passages: Passages | None = None
) -> Draft:
  """A draft of a row with the keys `id`, `question`, and its answers' key."""
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text('question'),
    answers=fields_lib.unique(fields.texts(key)),
    passages=passages or {},
  )


def passage(fields: Fields) -> Passage:
  """A passage with the keys {id?, title?, text, score?}."""
  return Passage(
    id=fields.id('id', ''),
    title=fields.text('title', ''),
    text=fields.text('text'),
    score=fields.score('score'),
  )


def unanswerable(key: str) -> BadRecord:
  """The error that a question has no answer, by what its source says."""
  return BadRecord(
    Kind.UNANSWERABLE, f'{key}: the source says that there is no answer'
  )
