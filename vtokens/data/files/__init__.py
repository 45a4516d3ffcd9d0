"""Files of rows, one row at a time: JSON lines, JSON, TSV, Parquet.

A row is where a file holds one record or one passage. What the shape of a file
is, its content says; its name says only whether it is compressed.
"""

import codecs
import enum
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from vtokens.data.files import json_rows, tables
from vtokens.data.files.json_rows import load_json
from vtokens.data.files.reading import (
  Row,
  numbered_lines,
  opened,
  stem,
  text_lines,
)

__all__ = ['Row', 'Shape', 'load_json', 'rows', 'shape', 'stem', 'text_lines']

_HEAD = 1 << 16  # bytes
# Lines looked at to tell broken JSON lines from JSON over several lines.
_MAX_LINES_TRIED = 100
# What the first line of a TREC run or of qrels is: four or six columns.
_TREC_RUN = re.compile(rb'\S+\s+\S+\s+\S+\s+-?\d+\s+[-+.\deE]+\s+\S+\s*\Z')
_TREC_QRELS = re.compile(rb'\S+\s+\S+\s+\S+\s+-?\d+\s*\Z')
_FIRST_KEY = re.compile(rb'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)', re.DOTALL)
_TABLE_COLUMNS = {'id', 'question', 'text', 'possible_answers'}


class Shape(enum.Enum):
  """How a file holds what it holds."""

  LINES = 'JSON lines'
  ARRAY = 'a JSON array'
  OBJECT = 'a JSON object'
  OBJECT_OF_ARRAYS = 'a JSON object of arrays'
  TABLE = 'tab-separated values with a header'
  PARQUET = 'Parquet'
  TREC_RUN = 'a TREC run'
  TREC_QRELS = 'TREC qrels'


def shape(path: str) -> Shape:
  """Looks at the start of a file.

  Raises:
    RecordError: the file cannot be read, or not to its end.
  """
  with opened(path) as file:
    head = file.read(_HEAD)
  if head.startswith(b'PAR1'):
    return Shape.PARQUET
  head = head.removeprefix(codecs.BOM_UTF8).lstrip()
  if head.startswith(b'['):
    return Shape.ARRAY
  if head.startswith(b'{'):
    return _shape_of_objects(path, head)
  line = head.partition(b'\n')[0]
  if _TREC_RUN.match(line):
    return Shape.TREC_RUN
  if _TREC_QRELS.match(line):
    return Shape.TREC_QRELS
  columns = line.decode('utf-8', 'replace').strip().split('\t')
  if len(columns) > 1 and _TABLE_COLUMNS & {c.strip('"') for c in columns}:
    return Shape.TABLE
  return Shape.LINES


def rows(path: str, is_shape: Shape) -> Iterator[Row]:
  """The rows of a file that has rows.

  All but a JSON array's current item, or a Parquet file's current batch of
  rows, stays on disk.

  Raises:
    RecordError: the file cannot be read to its end.
    ValueError: a file of this shape has no rows.
  """
  readers = {
    Shape.LINES: json_rows.json_lines,
    Shape.ARRAY: json_rows.array_items,
    Shape.TABLE: tables.table_rows,
    Shape.PARQUET: tables.parquet_rows,
  }
  if is_shape not in readers:
    raise ValueError(f'{path}: {is_shape.value} has no rows')
  return readers[is_shape](path)


def _shape_of_objects(path: str, head: bytes) -> Shape:
  """JSON lines, or one object? The first line is an object, or a part."""
  first_key = _FIRST_KEY.match(head)
  whole = Shape.OBJECT
  if first_key and first_key[2] == b'[' and first_key[1] != b'data':
    whole = Shape.OBJECT_OF_ARRAYS
  lines = (line for _, line in numbered_lines(path) if line.strip())
  value = _object_or_none(next(lines))
  later = list(itertools.islice(lines, _MAX_LINES_TRIED))
  if value is not None:
    return Shape.LINES if later or not _is_document(value) else whole
  if not later:
    return Shape.LINES
  # Lines within an object are no objects themselves, at column 1.
  broken = any(
    line.startswith(b'{') and _object_or_none(line) is not None
    for line in later
  )
  return Shape.LINES if broken else whole


def _is_document(value: dict[str, Any]) -> bool:
  """Whether an object alone in its file holds many records."""
  values = list(value.values())
  columns = [value.get('query'), value.get('query_id')]
  return bool(values) and (
    isinstance(value.get('data'), list)
    or all(isinstance(column, dict) for column in columns)
    # By id or question.
    or all(isinstance(item, list) for item in values)
    or all(isinstance(item, dict) and 'contexts' in item for item in values)
  )


def _object_or_none(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line.decode('utf-8', 'surrogateescape'))
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None
