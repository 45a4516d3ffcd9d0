"""Which format a row has, told by its keys.

A row is the object that a line, an item of an array, a row of Parquet or an
example of a TFDS data set is.
"""

import dataclasses
from collections.abc import Callable

from vtokens.data import table_cells
from vtokens.data.fields import RowFields
from vtokens.data.formats import datasets, drafts, evals, rag, unread
from vtokens.data.formats.drafts import Draft


def convert(fields: RowFields) -> Draft:
  """A row, its format told by its keys.

  Raises:
    BadRecord: the row breaks a rule, or has keys that look like passages or
      answers and belong to none of the formats.
  """
  for key, value in (('answerable', False), ('is_impossible', True)):
    if key in fields and _truth(fields.get(key)) is value:
      raise drafts.unanswerable(key)
  draft = _converter(fields)(fields)
  evals.check_choices(fields, draft)
  unread.check(fields)
  return dataclasses.replace(draft, notes=(*draft.notes, *fields.notes))


def _truth(value: object) -> object:
  """A cell of a table as a boolean, if it is one; other values as they are."""
  if isinstance(value, table_cells.TextCell):
    return {'true': True, 'false': False}.get(value.strip().lower(), value)
  return value


def _converter(fields: RowFields) -> Callable[[RowFields], Draft]:
  for keys, converter in _CONVERTERS:
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


_Converters = tuple[tuple[tuple[str, ...], Callable[[RowFields], Draft]], ...]

# The first whose keys a row has; more telling ones come first.
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
# Of rows without `answers`: what is `answer` there, a system may have said.
_OF_SYSTEMS: _Converters = (
  (('ground_truth',), evals.ragas),
  (('ground_truths',), evals.ragas),
  (('user_input', 'reference'), evals.ragas),
  (('retrieved_contexts', 'reference'), evals.ragas),
)
