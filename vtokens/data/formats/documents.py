"""Splits JSON files that hold many records in one object into rows.

Sources of the shapes: SQuAD 1.1 and 2.0 as the builder of tensorflow_datasets
4.9.10 reads them; CoQA likewise; MS MARCO QA as
microsoft/MSMARCO-Question-Answering Baseline/scripts/dataset.py does; the DPR
run of castorini/pyserini
pyserini/eval/convert_trec_run_to_dpr_retrieval_run.py.
"""

from collections.abc import Iterator
from typing import Any

from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import DUPLICATE
from vtokens.data.records import RecordError
from vtokens.host import errors

_MS_MARCO_COLUMNS = ('query', 'query_id', 'passages', 'answers')


def rows(path: str, value: Any) -> Iterator[tuple[str, Any]]:
  """Yields (path within the document, row).

  Args:
    path: the file, for messages.
    value: its JSON value.

  Raises:
    RecordError: the document has no known format.
  """
  if isinstance(value, dict) and isinstance(value.get('data'), list):
    yield from _data(path, value['data'])
  elif is_ms_marco(value):
    yield from _ms_marco(value)
  elif isinstance(value, dict) and _each_has(value, 'contexts'):
    for query_id, row in value.items():
      yield query_id, _with(row, id=query_id)
  else:
    found = errors.several(value, '') if isinstance(value, dict) else ''
    raise RecordError(
      f'{path}: found one JSON value{found and " with the keys "}{found}, '
      'expected one record a line, an array of records, or a document of '
      'SQuAD or CoQA (data), MS MARCO (query, query_id, passages) or a DPR '
      'run of Pyserini (contexts under each id)'
    )


def is_ms_marco(value: Any) -> bool:
  """Whether a value is MS MARCO's object of columns, keyed by row."""
  return isinstance(value, dict) and all(
    isinstance(value.get(column), dict)
    for column in ('query', 'query_id', 'passages')
  )


def _data(path: str, data: list[Any]) -> Iterator[tuple[str, Any]]:
  for i, item in enumerate(data):
    where = f'data[{i}]'
    if not isinstance(item, dict) or not {'paragraphs', 'story'} & item.keys():
      raise RecordError(
        f'{path}: {where}: found neither paragraphs (SQuAD) nor story (CoQA), '
        'expected one of them'
      )
    if 'story' in item:
      yield where, item
      continue
    for place, paragraph in _items(path, where, item, 'paragraphs'):
      for name, question in _items(path, place, paragraph, 'qas'):
        yield (
          name,
          _with(
            question,
            title=item.get('title', ''),
            **{k: v for k, v in paragraph.items() if k == 'context'},
          ),
        )


def _items(
  path: str, where: str, holder: Any, key: str
) -> Iterator[tuple[str, Any]]:
  value = holder.get(key) if isinstance(holder, dict) else None
  if not isinstance(value, list):
    raise RecordError(
      f'{path}: {where}.{key}: found no array, expected that of SQuAD'
    )
  for i, item in enumerate(value):
    yield f'{where}.{key}[{i}]', item


def _ms_marco(columns: dict[str, Any]) -> Iterator[tuple[str, Any]]:
  for row in columns['query']:
    values = {
      column: columns[column][row]
      for column in _MS_MARCO_COLUMNS
      if isinstance(columns.get(column), dict) and row in columns[column]
    }
    yield f'row {row}', values


def _each_has(value: dict[str, Any], key: str) -> bool:
  return bool(value) and all(
    item is DUPLICATE or (isinstance(item, dict) and key in item)
    for item in value.values()
  )


def _with(row: Any, **values: Any) -> Any | BadRecord:
  """Adds keys to a row; returns other values as they are."""
  if row is DUPLICATE:
    return BadRecord(Kind.MALFORMED, 'found more than once, expected once')
  return {**row, **values} if isinstance(row, dict) else row
