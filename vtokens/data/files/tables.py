"""Rows of tables: TSV and Parquet."""

import csv
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from vtokens import errors
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.files.reading import Row, numbered_lines, opened
from vtokens.data.records import RecordError


def table_rows(path: str) -> Iterator[Row]:
  """Rows as objects by the names in the header; all values are strings.

  Quoting is that of CSV files. A field may have up to 131,072 characters: a
  quotation mark that is never closed swallows no more than that.
  """
  lines = (
    line.decode('utf-8', 'surrogateescape') for _, line in numbered_lines(path)
  )
  reader = csv.reader(lines, delimiter='\t')
  header = next(reader)
  start = reader.line_num + 1
  while True:
    value: Any
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      value = BadRecord(Kind.MALFORMED, f'row: found bad quoting ({e})')
    else:
      value = _table_row(header, fields)
    yield Row(start, f'{path}:{start}', value)
    start = reader.line_num + 1


def _table_row(header: list[str], fields: list[str]) -> Any | BadRecord:
  if len(fields) != len(header):
    return BadRecord(
      Kind.MALFORMED,
      f'row: found {len(fields)} fields, expected {len(header)}: '
      f'{errors.several(header)}',
    )
  return dict(zip(header, fields, strict=True))


def parquet_rows(path: str) -> Iterator[Row]:
  """Rows as objects, without the columns that are null in them.

  Raises:
    errors.UserError: pyarrow is not installed.
    RecordError: the file cannot be read to its end.
  """
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError:
    raise errors.UserError(
      f"{path}: Parquet files need pyarrow: pip install 'vtokens[parquet]'"
    ) from None
  with opened(path) as file:
    try:
      numbers = itertools.count(1)
      for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
        for value in _batch_values(batch):
          number = next(numbers)
          yield Row(number, f'{path}: row {number}', value)
    except pa.ArrowException as e:
      raise RecordError(
        f'{path}: cannot be read to its end: {type(e).__name__}: {e}. Make or '
        'copy the file again'
      ) from e


def _batch_values(batch: Any) -> Iterable[Any | BadRecord]:
  try:
    return [_without_nulls(value) for value in batch.to_pylist()]
  except UnicodeDecodeError as e:
    if len(batch) > 1:
      halves = batch.slice(0, len(batch) // 2), batch.slice(len(batch) // 2)
      return [value for half in halves for value in _batch_values(half)]
    return [
      BadRecord(Kind.INVALID_UTF8, f'row: found {e.reason}, expected UTF-8')
    ]


def _without_nulls(value: Any) -> Any:
  """A column that a row lacks is null in it."""
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
