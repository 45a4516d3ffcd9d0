"""Reads rows of tables: tab- and comma-separated values, and Parquet."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vtokens.data.checks import BadRecord, Kind
from vtokens.data.files import file_shapes
from vtokens.data.files.compressed_lines import (
  MAX_ROW,
  Row,
  numbered_lines,
  opened,
  text_lines,
)
from vtokens.data.records import RecordError
from vtokens.data.table_cells import TextCell
from vtokens.host import errors

_BATCH = 256  # rows of Parquet
# Bytes of a batch in memory: a batch of rows of the longest average that
# `_batch_size` accepts is smaller.
_MAX_BATCH = 1 << 30


def table_rows(path: str) -> Iterator[Row]:
  """Yields rows as objects of cells, with the header's names as keys.

  An empty cell is null. Quoting is that of CSV files. A field may have up to
  131,072 characters: an unclosed quotation mark swallows no more.

  Raises:
    RecordError: the file cannot be read to its end, or its header repeats a
      name.
  """
  first = next((line for _, line in text_lines(path)), '')
  reader = _separated(path, file_shapes.delimiter(first) or '\t')
  header: list[str] = next(reader).value  # type: ignore[assignment]
  twice = [name for name in header if name and header.count(name) > 1]
  if twice:
    raise RecordError(
      f'{path}: found the column {twice[0]} more than once, expected it once'
    )
  for row in reader:
    yield _row_of(row, header)


def question_rows(path: str) -> Iterator[Row]:
  """Yields DPR's questions: a question, and a list in Python or JSON."""
  for row in _separated(path, '\t'):
    yield _row_of(row, ('question', 'answers'))


def collection_rows(path: str) -> Iterator[Row]:
  """Yields MS MARCO's passages: an id, a tab, and a text without quoting."""
  for number, line in numbered_lines(path):
    fields = line.decode('utf-8', 'surrogateescape').rstrip('\r\n').split('\t')
    yield _row_of(Row(number, f'{path}:{number}', fields), ('id', 'text'))


def _separated(path: str, mark: str) -> Iterator[Row]:
  """Yields the fields of each row, or what is wrong with it."""
  lines = (
    line.decode('utf-8', 'surrogateescape') for _, line in numbered_lines(path)
  )
  reader = csv.reader(lines, delimiter=mark)
  start = 1
  while True:
    value: Any
    try:
      value = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      value = BadRecord(Kind.MALFORMED, f'row: found bad quoting ({e})')
    yield Row(start, f'{path}:{start}', value)
    start = reader.line_num + 1


def _row_of(row: Row, header: Sequence[str]) -> Row:
  fields = row.value
  if isinstance(fields, BadRecord):
    return row
  value: Any
  if len(fields) != len(header):
    value = BadRecord(
      Kind.MALFORMED,
      f'row: found {len(fields)} fields, expected {len(header)}: '
      f'{errors.several(header)}',
    )
  else:
    value = {
      name: TextCell(field) if field else None
      for name, field in zip(header, fields, strict=True)
    }
  return Row(row.number, row.place, value)


def parquet_rows(path: str) -> Iterator[Row]:
  """Yields rows as objects; a column that a row lacks is null.

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
      parquet = pq.ParquetFile(file)
      size = _batch_size(path, parquet.metadata)
      for batch in parquet.iter_batches(batch_size=size):
        if batch.nbytes > _MAX_BATCH:
          raise _too_long(path, batch.nbytes // len(batch))
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
    values: list[Any] = batch.to_pylist()
    return values
  except UnicodeDecodeError as e:
    if len(batch) > 1:
      halves = batch.slice(0, len(batch) // 2), batch.slice(len(batch) // 2)
      return [value for half in halves for value in _batch_values(half)]
    return [
      BadRecord(Kind.INVALID_UTF8, f'row: found {e.reason}, expected UTF-8')
    ]


def _batch_size(path: str, metadata: Any) -> int:
  """Chooses the rows of a batch such that any group's batch fits into memory.

  Raises:
    RecordError: the rows of a group are too long.
  """
  longest = 1
  for i in range(metadata.num_row_groups):
    group = metadata.row_group(i)
    longest = max(longest, group.total_byte_size // max(group.num_rows, 1))
  if longest > MAX_ROW:
    raise _too_long(path, longest)
  return max(1, min(_BATCH, _MAX_BATCH // 4 // longest))


def _too_long(path: str, size: int) -> RecordError:
  return RecordError(
    f'{path}: found rows of {size:,} bytes each, unpacked, expected at most '
    f'{MAX_ROW:,}'
  )
