"""Reads rows of JSON: lines, and items of arrays."""

import codecs
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from vtokens.data.checks import BadRecord, Kind, printable
from vtokens.data.fields import DUPLICATE
from vtokens.data.files.compressed_lines import (
  MAX_ROW,
  Row,
  numbered_lines,
  opened,
)
from vtokens.data.records import RecordError

CHUNK_BYTES = 1 << 20


def load_json(path: str) -> Any:
  """Loads a file of one JSON value into memory.

  Bytes that are not UTF-8 become surrogates, which `RowFields` refuses.

  Raises:
    RecordError: the file cannot be read, is not JSON, or is too large.
  """
  _check_size(path)
  with opened(path) as file:
    text = file.read().removeprefix(codecs.BOM_UTF8)
  try:
    return _decode(text.decode('utf-8', 'surrogateescape'))
  except json.JSONDecodeError as e:
    raise RecordError(
      f'{path}:{e.lineno}: found no JSON at column {e.colno} ({e.msg}), '
      'expected one JSON value in the whole file, or one in each line'
    ) from None
  except (RecursionError, ValueError) as e:
    raise RecordError(
      f'{path}: found JSON that cannot be parsed ({e}), expected one value'
    ) from None


def max_document() -> int:
  """Bytes of the largest JSON document to load whole.

  Its values take several times as much memory.
  """
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 8


def _check_size(path: str) -> None:
  """Raises a `RecordError` if a document is too large to load."""
  limit, size = max_document(), 0
  with opened(path) as file:
    while size <= limit and (block := file.read(CHUNK_BYTES)):
      size += len(block)
  if size > limit:
    raise RecordError(
      f'{path}: found a JSON document of more than {limit:,} bytes, an eighth '
      'of the memory, expected a smaller one, or one record a line, which is '
      'read line by line'
    )


def json_lines(path: str) -> Iterator[Row]:
  """Yields a row for each line, except blank lines at the end."""
  for number, line in numbered_lines(path):
    yield Row(number, f'{path}:{number}', _or_bad(_parse_line, line))


def _or_bad(parse: Callable[[Any], Any], raw: Any) -> Any | BadRecord:
  try:
    return parse(raw)
  except BadRecord as e:
    return e


def _parse_line(line: bytes) -> Any:
  if len(line) > MAX_ROW:
    raise BadRecord(
      Kind.TOO_LONG,
      f'line: found more than {MAX_ROW:,} bytes, expected at most as many',
    )
  if not line.strip():
    raise BadRecord(
      Kind.MALFORMED,
      'line: found a blank line before the last record, '
      'expected one JSON object',
    )
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as e:
    raise BadRecord(
      Kind.INVALID_UTF8,
      f'line: found byte 0x{line[e.start]:02x} at position {e.start + 1} '
      f'({e.reason}), expected UTF-8',
    ) from None
  try:
    return _decode(text)
  except json.JSONDecodeError as e:
    raise BadRecord(
      Kind.MALFORMED,
      f'line: found no JSON at column {e.colno} ({e.msg}), '
      'expected one JSON object',
    ) from None
  # Deep nesting, and numbers with more digits than Python converts.
  except (RecursionError, ValueError) as e:
    raise BadRecord(
      Kind.MALFORMED,
      f'line: found JSON that cannot be parsed ({e}), expected one JSON object',
    ) from None


class _NotWholeError(Exception):
  """The text read so far ends within an item of the array."""


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  # `RowFields` raises the error: it knows the object's place in the row.
  result: dict[str, Any] = {}
  for key, value in pairs:
    result[key] = DUPLICATE if key in result else value
  return result


_DECODER = json.JSONDecoder(object_pairs_hook=_mark_duplicates)
# Bytes that are not UTF-8 after decoding, and escapes that decode to the same.
_BAD_BYTE = re.compile('[\udc80-\udcff]')
_ESCAPE = re.compile(r'\\u[dD][cC]')


def _decode(text: str) -> Any:
  return _tell_escapes(_DECODER.decode(text), text)


def _tell_escapes(value: Any, text: str) -> Any:
  r"""Replaces escaped lone surrogates that would look like bad bytes.

  Args:
    value: the parsed JSON.
    text: the JSON text. If it has bad bytes itself, nothing is replaced.
  """
  if not _ESCAPE.search(text) or _BAD_BYTE.search(text):
    return value
  return _without_bytes(value)


def _without_bytes(value: Any) -> Any:
  if isinstance(value, str):
    return _BAD_BYTE.sub('\ud800', value)
  if isinstance(value, list):
    return [_without_bytes(item) for item in value]
  if isinstance(value, dict):
    return {_without_bytes(k): _without_bytes(v) for k, v in value.items()}
  return value


_SPACE = re.compile(r'[ \t\n\r]*')
_END = object()  # of an array


def array_items(path: str) -> Iterator[Row]:
  """Yields the items of a JSON array of any size, one at a time."""
  with opened(path) as file:
    chunks = _text_chunks(file)
    text, at = next(chunks, '').lstrip(), len('[')
    for number in itertools.count():
      want = 1
      while True:
        try:
          value, at = _next_item(text, at, is_first=not number)
          break
        except _NotWholeError as e:
          # Double the amount each time, since each try parses the item from
          # its start.
          more = ''.join(itertools.islice(chunks, want))
          if not more:
            _bad_array(path, number, str(e))
          if len(text) - at + len(more) > MAX_ROW + want * CHUNK_BYTES:
            _bad_array(path, number, f'an item of over {MAX_ROW:,} characters')
          text, at = text[at:] + more, 0
          want = min(2 * want, max(1, MAX_ROW // CHUNK_BYTES))
        except (RecursionError, ValueError) as e:
          _bad_array(path, number, str(e))
      if value is _END:
        if text[at:].strip() or any(chunk.strip() for chunk in chunks):
          _bad_array(path, number, 'something after the array')
        return
      yield Row(number + 1, f'{path}: [{number}]', value)


def _text_chunks(file: IO[bytes]) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder('utf-8')('surrogateescape')
  size = CHUNK_BYTES
  data = file.read(size).removeprefix(codecs.BOM_UTF8)
  while data:
    if text := decoder.decode(data):
      yield text
    data = file.read(size)
  if text := decoder.decode(b'', final=True):
    yield text


def _next_item(text: str, at: int, *, is_first: bool) -> tuple[Any, int]:
  """Parses the item at an index; returns it, or `_END`, and its end.

  Raises:
    _NotWholeError: more text may complete the item.
    ValueError: the text is not JSON, whatever follows.
  """
  at = _skip_space(text, at)
  if text.startswith(']', at):
    return _END, at + 1
  if not is_first and at < len(text):
    if text[at] != ',':
      raise ValueError(f'{text[at : at + 20]!r} instead of , or ]')
    at = _skip_space(text, at + 1)
  try:
    value, end = _DECODER.raw_decode(text, at)
  except json.JSONDecodeError as e:
    raise _NotWholeError(str(e)) from None
  if end == len(text):  # A number may continue.
    raise _NotWholeError('the end of the file')
  return _tell_escapes(value, text[at:end]), end


def _skip_space(text: str, at: int) -> int:
  return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _bad_array(path: str, number: int, found: str) -> NoReturn:
  raise RecordError(
    f'{path}: [{number}]: found no JSON ({printable(found)}), expected an '
    'array of objects and nothing after it'
  )
