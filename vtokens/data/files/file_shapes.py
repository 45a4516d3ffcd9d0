"""Tells the shape of a file by its start."""

import codecs
import csv
import enum
import json
import re
from typing import Any

from vtokens.data import table_cells
from vtokens.data.checks import printable
from vtokens.data.files.compressed_lines import MAX_ROW, numbered_lines, opened
from vtokens.data.records import RecordError

_HEAD = 1 << 16  # bytes
# Lines parsed to tell broken JSON lines from JSON over several lines.
_MAX_LINES_TRIED = 100
# First lines of TREC runs (six columns) and qrels (four).
_TREC_RUN = re.compile(rb'\S+\s+\S+\s+\S+\s+-?\d+\s+[-+.\deE]+\s+\S+\s*\Z')
_TREC_QRELS = re.compile(rb'\S+\s+\S+\s+\S+\s+-?\d+\s*\Z')
# The header of BEIR's qrels.
BEIR_QRELS = ('query-id', 'corpus-id', 'score')
_FIRST_KEY = re.compile(rb'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)', re.DOTALL)
# A header consists of names, and has one of these.
_COLUMNS = {
  '\t': {'id', 'question', 'text', 'possible_answers', 'query', 'contents'},
  ',': {'question', 'text', 'possible_answers', 'query', 'contents'},
}
_COLUMNS[';'] = _COLUMNS[',']
_COLUMN_NAME = re.compile(r'[\w .:/()-]{0,60}')
_SEPARATORS = {'\t': 'tab', ',': 'comma', ';': 'semicolon'}
_FIRST_BYTES = (
  (b'\x1f\x8b', 'gzip under a name without .gz'),
  (b'BZh', 'bzip2 under a name without .bz2'),
  (b'\xfd7zXZ', 'xz under a name without .xz'),
  (b'\x28\xb5\x2f\xfd', 'Zstandard, unpack it first'),
  (b'PK\x03\x04', 'a zip archive, unpack it first'),
  (b'ARROW1', 'an Arrow file, export it with to_parquet or to_json'),
  (b'\xff\xff\xff\xff', 'an Arrow file, export it with to_parquet or to_json'),
  (b'SQLite format 3', 'an SQLite database'),
  (b'\x93NUMPY', 'an array of NumPy'),
  (b'\x80', 'a pickle, or other bytes that are no text'),
  (b'%PDF', 'a PDF'),
  (b'version https://git-lfs', 'a pointer of Git LFS, run git lfs pull'),
  (b'<', 'HTML or XML, as a failed download leaves it'),
  (codecs.BOM_UTF16_LE, 'UTF-16, write it again as UTF-8'),
  (codecs.BOM_UTF16_BE, 'UTF-16, write it again as UTF-8'),
)
_EXPECTED = (
  'expected JSON lines, JSON, Parquet, or a tab- or comma-separated table '
  'whose first line names columns such as question and answers, or id and text'
)


class Shape(enum.Enum):
  """The shape of a file."""

  LINES = 'JSON lines'
  ARRAY = 'a JSON array'
  OBJECT = 'a JSON object'
  OBJECT_OF_ARRAYS = 'a JSON object of arrays'
  TABLE = 'a table with a header'
  QUESTIONS = 'tab-separated questions and lists of answers'
  COLLECTION = 'tab-separated without a header, ids and texts'
  PARQUET = 'Parquet'
  TREC_RUN = 'a TREC run'
  TREC_QRELS = 'TREC qrels'


def shape(path: str) -> Shape:
  """Finds the shape of a file.

  Raises:
    RecordError: the file cannot be read, or it has no known shape.
  """
  with opened(path) as file:
    head = file.read(_HEAD)
  if head.startswith(b'PAR1'):
    return Shape.PARQUET
  for magic, what in _FIRST_BYTES:
    if head.startswith(magic):
      raise RecordError(f'{path}: found {what}, {_EXPECTED}')
  if head[257:262] == b'ustar':
    raise RecordError(
      f'{path}: found a tar archive, unpack it first, {_EXPECTED}'
    )
  head = head.removeprefix(codecs.BOM_UTF8).lstrip()
  if head.startswith(b'['):
    return Shape.ARRAY
  if head.startswith(b'{'):
    return _shape_of_objects(path, head)
  return _shape_of_text(path, head)


def delimiter(header: str) -> str:
  """The separator of a table's columns; '' if the line is no header."""
  for mark, known in _COLUMNS.items():
    names = _split(header, mark)
    if (
      len(names) > 1
      and all(map(_COLUMN_NAME.fullmatch, names))
      and known & {name.casefold() for name in names}
    ):
      return mark
  return ''


def _shape_of_text(path: str, head: bytes) -> Shape:
  lines = head.split(b'\n')[:_MAX_LINES_TRIED]
  if _TREC_RUN.match(lines[0]):
    return Shape.TREC_RUN
  if _TREC_QRELS.match(lines[0]):
    return Shape.TREC_QRELS
  texts = [line.decode('utf-8', 'replace').strip('\r') for line in lines[:5]]
  first = texts[0].rstrip()
  if tuple(first.split('\t')) == BEIR_QRELS:
    return Shape.TREC_QRELS
  if delimiter(first):
    return Shape.TABLE
  # A line may be bad, so one good line is enough.
  if any(line.startswith(b'{') for line in lines):
    return Shape.LINES
  columns = first.split('\t')
  if len(columns) == 2:
    if isinstance(
      table_cells.parsed(table_cells.TextCell(_split(first, '\t')[-1])), list
    ):
      return Shape.QUESTIONS
    if columns[0] and columns[1].strip() and not re.search(r'\s', columns[0]):
      return Shape.COLLECTION
  for mark, name in _SEPARATORS.items():
    counts = {len(_split(text, mark)) for text in texts if text.strip()}
    if '\t' in first if mark == '\t' else len(counts) == 1 and max(counts) > 1:
      columns = _split(first, mark)
      shown = ', '.join(printable(column) for column in columns[:6])
      raise RecordError(
        f'{path}: found values that are {name}-separated without a header that '
        f'is known, {len(columns)} columns: {shown}; {_EXPECTED}'
      )
  return Shape.LINES


def _split(line: str, mark: str) -> list[str]:
  try:
    return next(csv.reader([line], delimiter=mark), [])
  except csv.Error:
    return []


def _shape_of_objects(path: str, head: bytes) -> Shape:
  """Tells JSON lines from one JSON object in the whole file."""
  first_key = _FIRST_KEY.match(head)
  whole = Shape.OBJECT
  if first_key and first_key[2] == b'[' and first_key[1] != b'data':
    whole = Shape.OBJECT_OF_ARRAYS
  lines = (line for _, line in numbered_lines(path) if line.strip())
  first = next(lines)
  if len(first) > MAX_ROW:
    # No row is so long. In documents, keys hold objects and arrays.
    starts = first_key and (
      first_key[2] in b'[{' or first_key[1] in (b'data', b'version')
    )
    return whole if starts else Shape.LINES
  value = _object_or_none(first)
  if value is not None:
    more = next(lines, None) is not None
    return Shape.LINES if more or not _is_document(value) else whole
  # In an object over several lines, no line is itself an object at column 1.
  number = 0
  for number, line in enumerate(lines, start=1):
    if line.startswith(b'{') and _object_or_none(line) is not None:
      return Shape.LINES
    if number == _MAX_LINES_TRIED:
      break
  return whole if number else Shape.LINES


def _is_document(value: dict[str, Any]) -> bool:
  """Whether an object alone in its file holds many records."""
  values = list(value.values())
  columns = [value.get('query'), value.get('query_id')]
  return bool(values) and (
    isinstance(value.get('data'), list)
    or all(isinstance(column, dict) for column in columns)
    # Values by id or question.
    or all(isinstance(item, list) for item in values)
    or all(isinstance(item, dict) and 'contexts' in item for item in values)
  )


def _object_or_none(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line.decode('utf-8', 'surrogateescape'))
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None
