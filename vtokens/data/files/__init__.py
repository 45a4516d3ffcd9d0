"""Reads files of rows, one row at a time: JSON lines, JSON, tables, Parquet.

A row holds one record or one passage. The shape of a file is told by its
content; its name only tells whether it is compressed.
"""

from collections.abc import Iterator

from vtokens.data.files import json_rows, table_rows
from vtokens.data.files.compressed_lines import (
  Row,
  check_is_file,
  stem,
  text_lines,
)
from vtokens.data.files.file_shapes import BEIR_QRELS, Shape, shape
from vtokens.data.files.json_rows import load_json
from vtokens.data.records import RecordError

__all__ = [
  'BEIR_QRELS',
  'Row',
  'Shape',
  'check_is_file',
  'load_json',
  'rows',
  'shape',
  'stem',
  'text_lines',
]

_READERS = {
  Shape.LINES: json_rows.json_lines,
  Shape.ARRAY: json_rows.array_items,
  Shape.TABLE: table_rows.table_rows,
  Shape.QUESTIONS: table_rows.question_rows,
  Shape.COLLECTION: table_rows.collection_rows,
  Shape.PARQUET: table_rows.parquet_rows,
}


def rows(path: str, is_shape: Shape) -> Iterator[Row]:
  """Yields the rows of a file.

  Only the current item of a JSON array, or the current batch of rows of a
  Parquet file, is in memory.

  Raises:
    RecordError: the file cannot be read to its end, or its shape has no rows.
  """
  if is_shape not in _READERS:
    raise RecordError(
      f'{path}: found {is_shape.value}, expected rows: JSON lines, a JSON '
      'array, a table with a header, or Parquet'
    )
  return _READERS[is_shape](path)
