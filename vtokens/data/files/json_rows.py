"""Rows of JSON: lines, and items of arrays."""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from vtokens.data.checks import BadRecord, Kind, printable
from vtokens.data.fields import DUPLICATE
from vtokens.data.files.reading import Row, numbered_lines, opened
from vtokens.data.records import RecordError

_CHUNK = 1 << 20  # bytes


def load_json(path: str) -> Any:
  """What a file of one JSON value holds, all of it in memory.

  Bytes that are not UTF-8 become surrogates, which checks of text find.

  Raises:
    RecordError: the file cannot be read, or is no JSON.
  """
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


def json_lines(path: str) -> Iterator[Row]:
  """A row for each line, blank ones at the end apart."""
  for number, line in numbered_lines(path):
    yield Row(number, f'{path}:{number}', _or_bad(_parse_line, line))


def _or_bad(parse: Callable[[Any], Any], raw: Any) -> Any | BadRecord:
  try:
    return parse(raw)
  except BadRecord as e:
    return e


def _parse_line(line: bytes) -> Any:
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
  """What was read of a JSON array ends within an item."""


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  # The error is raised later, where the object's place in the row is known.
  result: dict[str, Any] = {}
  for key, value in pairs:
    result[key] = DUPLICATE if key in result else value
  return result


_DECODER = json.JSONDecoder(object_pairs_hook=_mark_duplicates)
_decode = _DECODER.decode
_SPACE = re.compile(r'[ \t\n\r]*')
_END = object()  # of an array


def array_items(path: str) -> Iterator[Row]:
  """Items of a JSON array, which may be of many gigabytes, one at a time."""
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
          # Twice as much each time: an item is parsed again from its start.
          more = ''.join(itertools.islice(chunks, want))
          if not more:
            _bad_array(path, number, str(e))
          text, at, want = text[at:] + more, 0, 2 * want
        except (RecursionError, ValueError) as e:
          _bad_array(path, number, str(e))
      if value is _END:
        if text[at:].strip() or ''.join(chunks).strip():
          _bad_array(path, number, 'something after the array')
        return
      yield Row(number + 1, f'{path}: [{number}]', value)


def _text_chunks(file: IO[bytes]) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder('utf-8')('surrogateescape')
  size = _CHUNK
  data = file.read(size).removeprefix(codecs.BOM_UTF8)
  while data:
    if text := decoder.decode(data):
      yield text
    data = file.read(size)
  if text := decoder.decode(b'', final=True):
    yield text


def _next_item(text: str, at: int, *, is_first: bool) -> tuple[Any, int]:
  """The item that starts there, or `_END`, and where it ends.

  Raises:
    _NotWholeError: perhaps it is whole with more text.
    ValueError: it is not, however much follows.
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
  if end == len(text):  # A number may go on.
    raise _NotWholeError('the end of the file')
  return value, end


def _skip_space(text: str, at: int) -> int:
  return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _bad_array(path: str, number: int, found: str) -> NoReturn:
  raise RecordError(
    f'{path}: [{number}]: found no JSON ({printable(found)}), expected an '
    'array of objects and nothing after it'
  )
