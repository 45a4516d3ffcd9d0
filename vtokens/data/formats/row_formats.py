"""Finds the format of a row by its keys, and reads the row.

A row is the object in a line, an item of an array, a row of Parquet or an
example of a TFDS dataset.
"""

import dataclasses
from collections.abc import Callable, Sequence

from vtokens.data import table_cells
from vtokens.data.fields import RowFields
from vtokens.data.formats import datasets, drafts, evals, rag, unread
from vtokens.data.formats.drafts import Draft

Converter = Callable[[RowFields], Draft]
_registered: dict[tuple[str, ...], Converter] = {}


def register(keys: Sequence[str], converter: Converter) -> None:
  """Adds a format from outside this package, e.g. from a config file.

  Token caches record its name. To have rows read again after a change of the
  function, rename it.

  Args:
    keys: rows that have all these keys have the format; it goes before the
      formats of this package.
    converter: a function of a module that reads such a row.
  """
  _registered[tuple(keys)] = converter


def registered() -> list[str]:
  """Keys and functions of the formats from outside, for token caches."""
  return [
    f'{" ".join(keys)}: {converter.__qualname__}'
    for keys, converter in _registered.items()
  ]


def convert(fields: RowFields) -> Draft:
  """Reads a row of any format.

  Raises:
    BadRecord: the row breaks a rule, or has keys that look like passages or
      answers and belong to no format.
  """
  for key, value in (('answerable', False), ('is_impossible', True)):
    if key in fields and _truth(fields.get(key)) is value:
      drafts.mark_unanswerable(fields, key)
  draft = _converter(fields)(fields)
  if not fields.answerable:
    # Some sources name an answer all the same, as MuSiQue does.
    draft = dataclasses.replace(draft, answers=())
  evals.check_choices(fields, draft)
  unread.check(fields)
  return dataclasses.replace(draft, notes=(*draft.notes, *fields.notes))


def _truth(value: object) -> object:
  """Reads true and false from a table's cell; other values stay."""
  if isinstance(value, table_cells.TextCell):
    return {'true': True, 'false': False}.get(value.strip().lower(), value)
  return value


def _converter(fields: RowFields) -> Converter:
  for keys, converter in (*_registered.items(), *_CONVERTERS):
    if all(key in fields for key in keys):
      return converter
  if 'answers' in fields or 'target' in fields:
    return rag.own
  for keys, converter in _OF_SYSTEMS:
    if all(key in fields for key in keys):
      return converter
  if 'answer' in fields:
    is_trivia_qa = isinstance(fields.get('answer'), dict)
    return datasets.trivia_qa if is_trivia_qa else datasets.nq_open
  return rag.own


_Converters = tuple[tuple[tuple[str, ...], Converter], ...]

# The first entry whose keys a row has is taken. More specific entries first.
_CONVERTERS: _Converters = (
  (('golden_answers',), rag.flashrag),
  (('ctxs',), rag.dpr),
  (('positive_ctxs',), rag.dpr_training),
  (('contexts', 'answers'), rag.pyserini),
  (('input', 'output'), rag.kilt),
  (('possible_answers',), datasets.popqa),
  (('supporting_facts', 'context'), datasets.hotpot),
  (('story',), datasets.coqa),
  (('context', 'answers'), datasets.squad),
  (('query', 'query_id', 'passages'), datasets.ms_marco),
  (('paragraphs', 'answer'), datasets.musique),
  (('docs', 'question'), evals.alce),
  (('positive', 'negative', 'answer'), evals.rgb),
  (('query', 'answer', 'search_results'), evals.crag),
)
# For rows without `answers`, in which `answer` may be what a system said.
_OF_SYSTEMS: _Converters = (
  (('ground_truth',), evals.ragas),
  (('ground_truths',), evals.ragas),
  (('user_input', 'reference'), evals.ragas),
  (('retrieved_contexts', 'reference'), evals.ragas),
)
