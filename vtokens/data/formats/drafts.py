"""Drafts: records whose passages may still be in a corpus."""

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
  """A passage named by id, whose text is in a corpus.

  Attributes:
    ids: id of the passage; several ids for a span of passages, of which the
      corpus must have at least one.
    score: the retriever's score.
    key: key of the row that names it, for messages.
  """

  ids: tuple[str, ...]
  score: float | None
  key: str


Passages = dict[str, list[Passage | Ref]]


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
  """A record whose passages may still be in a corpus.

  Attributes:
    id: id; '' if the row has none.
    dataset: dataset; '' if the row names none.
    question: never blank.
    answers: none blank; empty if the source says that there is none.
    passages: passages by retriever, best first.
    notes: notes on what was left out or replaced.
  """

  id: str
  dataset: str
  question: str
  answers: tuple[str, ...]
  passages: Passages
  notes: tuple[str, ...] = ()


def answers(fields: RowFields) -> tuple[str, ...]:
  """Answers under `answers` or `target`; if a row has both, `target` first.

  For TriviaQA, FiD and Atlas have the aliases, and the answer to train on. Of a
  question without an answer they may be absent.
  """
  if not fields.answerable:
    return _ignored(fields, 'answers', 'target')
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
  """Makes a draft of a row with a `question` (or `query`).

  Args:
    fields: the row.
    *keys: keys of the answers. The first is required; others may be absent or
      empty. Of a question without an answer all may be absent.
    passages: the row's passages.
    id_: key of the id.
  """
  texts: tuple[str, ...]
  if fields.answerable:
    texts = fields.texts(keys[0])
    for key in keys[1:]:
      if table_cells.parsed(fields.get(key)):
        texts += fields.texts(key)
  else:
    texts = _ignored(fields, *keys)
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
  """Reads {id?, title?, text, score?}; None and a note if the text is blank.

  Args:
    fields: the passage.
    text: key of the text.
    id_: key of the id.
  """
  found = Passage(
    id=fields.id(id_, ''),
    title=fields.text('title', ''),
    text=fields.body(text),
    score=fields.score('score'),
  )
  return visible(found, fields)


def contents(fields: RowFields, key: str, id_: str) -> Passage | None:
  """Like `passage`, for a text whose first line is the title."""
  title, text = corpus.split_contents(fields.body(key))
  found = Passage(fields.id(id_, ''), title, text, fields.score('score'))
  return visible(found, fields)


def visible(passage: Passage, fields: RowFields) -> Passage | None:
  """Returns the passage; None, and adds a note to the row, if it is blank."""
  if passage.text.strip():
    return passage
  fields.notes.append(BLANK)
  return None


def listed(
  fields: RowFields, key: str, *, text: str = 'text', id_: str = 'id'
) -> list[tuple[Passage, Any]]:
  """Reads an array of strings and objects as passages; leaves out blank ones.

  Args:
    fields: the row.
    key: key of the array.
    text: key of the text in an object.
    id_: key of the id in an object.

  Returns:
    Each passage with its object; None instead of the object for a string.
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
  """Lists all passages as `GIVEN`, and gold ones, if any, as `GOLD` too."""
  passages: Passages = {GIVEN: [*given]}
  if gold:
    passages[GOLD] = [*gold]
  return passages


def _ignored(fields: RowFields, *keys: str) -> tuple[str, ...]:
  """No answers; their keys count as read, since what they hold is no answer."""
  for key in keys:
    fields.get(key)
  return ()


def mark_unanswerable(fields: RowFields, key: str) -> None:
  """Notes that a row's question has no answer, as a key says.

  Raises:
    BadRecord: such rows are not kept.
  """
  if not fields.keep_unanswerable:
    raise unanswerable(key)
  fields.answerable = False


def unanswerable(key: str) -> BadRecord:
  """Makes the error for a question that its source marks as unanswerable."""
  return BadRecord(
    Kind.UNANSWERABLE, f'{key}: the source says that there is no answer'
  )
