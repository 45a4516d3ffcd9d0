"""Records on their way, whose passages may still lie in a corpus."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vtokens.data import corpus, table_cells
from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import RowFields
from vtokens.data.records import GIVEN, GOLD, Passage

BLANK = 'blank passages left out'


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
    notes: what was left out or replaced.
  """

  id: str
  dataset: str
  question: str
  answers: tuple[str, ...]
  passages: Passages
  notes: tuple[str, ...] = ()


def answers(fields: RowFields) -> tuple[str, ...]:
  """Those under `answers` or `target`; of both, `target` comes first.

  FiD and Atlas have both for TriviaQA: aliases, and the one to train on.
  """
  if 'answers' in fields and 'target' in fields:
    texts = fields.texts('target') + fields.texts('answers')
    return fields_lib.unique(texts)
  return fields.texts(fields.only('answers', 'target'))


def make(
  fields: RowFields,
  *keys: str,
  passages: Passages | None = None,
  id_: str = 'id',
) -> Draft:
  """A draft of a row with `question` (or `query`) and its answers' keys.

  Args:
    fields: the row.
    *keys: of the answers; the first must be there, others may be absent or
      empty.
    passages: of the row.
    id_: the key of the id.
  """
  texts = fields.texts(keys[0])
  for key in keys[1:]:
    if table_cells.parsed(fields.get(key)):
      texts += fields.texts(key)
  return Draft(
    id=fields.id(id_) if id_ in fields else '',
    dataset='',
    question=fields.text(fields.only('question', 'query')),
    answers=fields_lib.unique(texts),
    passages=passages or {},
  )


def passage(
  fields: RowFields, *, text: str = 'text', id_: str = 'id'
) -> Passage | None:
  """A passage {id?, title?, text, score?}; None, and a note, if it is blank.

  Args:
    fields: the passage.
    text: the key of the text.
    id_: the key of the id.
  """
  found = Passage(
    id=fields.id(id_, ''),
    title=fields.text('title', ''),
    text=fields.body(text),
    score=fields.score('score'),
  )
  return visible(found, fields)


def contents(fields: RowFields, key: str, id_: str) -> Passage | None:
  """A passage whose title is the first line of its text; see `passage`."""
  title, text = corpus.split_contents(fields.body(key))
  found = Passage(fields.id(id_, ''), title, text, fields.score('score'))
  return visible(found, fields)


def visible(passage: Passage, fields: RowFields) -> Passage | None:
  """The passage; None, and a note among those of the row, if it is blank."""
  if passage.text.strip():
    return passage
  fields.notes.append(BLANK)
  return None


def listed(
  fields: RowFields, key: str, *, text: str = 'text', id_: str = 'id'
) -> list[tuple[Passage, Any]]:
  """The passages of an array of strings and objects, without blank ones.

  Args:
    fields: the row.
    key: of the array.
    text: the key of an object's text.
    id_: the key of an object's id.

  Returns:
    Each passage, with its object as Fields; None for a string.
  """
  found: list[tuple[Passage, Any]] = []
  value = table_cells.parsed(fields.value(key))
  if isinstance(value, dict):
    items = [(f.path, f.values) for f in fields.objects(key, 'passages')]
  else:
    items = fields.items(key, 'passages')
  for name, item in items:
    part = None
    if isinstance(item, str):
      one = visible(
        Passage('', '', fields.check_text(item, name, blank=True)), fields
      )
    elif isinstance(item, dict):
      part = fields.part(item, name)
      one = passage(part, text=text, id_=id_)
    else:
      raise fields_lib.wrong_type(name, item, 'a string or an object')
    if one is not None:
      found.append((one, part))
  return found


def with_gold(given: Sequence[Passage], gold: Sequence[Passage]) -> Passages:
  """All passages as `GIVEN`, and those that are gold, if any, as `GOLD`."""
  passages: Passages = {GIVEN: [*given]}
  if gold:
    passages[GOLD] = [*gold]
  return passages


def unanswerable(key: str) -> BadRecord:
  """The error that a question has no answer, by what its source says."""
  return BadRecord(
    Kind.UNANSWERABLE, f'{key}: the source says that there is no answer'
  )
