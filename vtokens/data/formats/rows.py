"""Which format a row has, told by its keys; others are ignored.

A row is the object that a line, an item of an array, a row of Parquet or an
example of a TFDS data set is.
"""

from collections.abc import Callable

from vtokens.data.fields import Fields
from vtokens.data.formats import datasets, rag
from vtokens.data.formats.drafts import Draft


def convert(fields: Fields) -> Draft:
  """A row, its format told by its keys.

  Raises:
    BadRecord: the row breaks a rule.
  """
  return _converter(fields)(fields)


def _converter(fields: Fields) -> Callable[[Fields], Draft]:
  for keys, converter in _CONVERTERS:
    if all(key in fields for key in keys):
      return converter
  if 'answer' in fields and not ('answers' in fields or 'target' in fields):
    is_trivia_qa = isinstance(fields.values['answer'], dict)
    return datasets.trivia_qa if is_trivia_qa else datasets.nq_open
  return rag.own


# The first whose keys a row has; more telling ones come first.
_CONVERTERS: tuple[tuple[tuple[str, ...], Callable[[Fields], Draft]], ...] = (
  (('golden_answers',), rag.flashrag),
  (('ctxs',), rag.dpr),
  (('contexts', 'answers'), rag.pyserini),
  (('input', 'output'), rag.kilt),
  (('possible_answers',), datasets.popqa),
  (('supporting_facts', 'context'), datasets.hotpot),
  (('story',), datasets.coqa),
  (('context', 'answers'), datasets.squad),
  (('query', 'query_id', 'passages'), datasets.ms_marco),
)
