"""Values of files, checked as they are asked for."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from vtokens import errors
from vtokens.data.checks import BadRecord, Kind, printable

# Unicode's control characters (category Cc) but for \t \n \r, and surrogates:
# json.loads makes a lone surrogate from '\ud800', and no tokenizer encodes it.
_BAD_CHARACTER = re.compile(r'[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')
_TYPE_NAMES = {
  dict: 'an object',
  list: 'an array',
  str: 'a string',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  type(None): 'null',
}
# Stands for a value whose key an object has more than once.
DUPLICATE = object()


class Fields:
  """An object of a file: its values, checked when asked for.

  Args:
    values: what the object holds.
    path: where in its record it lies, such as 'ctxs[3]'; '' for the record.
    max_text_bytes: longest text allowed, in bytes of UTF-8.

  Raises:
    BadRecord: by every method, with the key, what was found and expected.
  """

  def __init__(self, values: Any, path: str, max_text_bytes: int):
    if not isinstance(values, dict):
      raise wrong_type(path or 'record', values, 'one JSON object')
    self.values: dict[str, Any] = values
    self.path = path
    self.max_text_bytes = max_text_bytes
    for key, value in values.items():
      if value is DUPLICATE:
        raise BadRecord(
          Kind.MALFORMED,
          f'{self.name(key)}: found more than once, expected once',
        )

  def __contains__(self, key: str) -> bool:
    return key in self.values

  def name(self, key: str) -> str:
    """The key with the path before it, fit for a message of one line."""
    return f'{self.path}.{printable(key)}' if self.path else printable(key)

  def only(self, *keys: str) -> str:
    """The one of several equivalent keys that the object has."""
    present = [key for key in keys if key in self.values]
    if not present:
      raise self.missing(' or '.join(keys))
    if len(present) > 1:
      raise BadRecord(
        Kind.MALFORMED,
        f'{" and ".join(map(self.name, present))}: found both, expected one: '
        'they mean the same',
      )
    return present[0]

  def missing(self, key: str) -> BadRecord:
    """The error that a key is missing."""
    keys = errors.several(map(printable, self.values), 'no key')
    return BadRecord(
      Kind.MISSING_KEY,
      f'{self.name(key)}: missing, found only {keys}, expected this key too',
    )

  def value(self, key: str) -> Any:
    """Whatever lies under a key that must be there."""
    if key not in self.values:
      raise self.missing(key)
    return self.values[key]

  def text(self, key: str, default: str | None = None) -> str:
    """Visible text; with a default the text may be blank, or no key there."""
    if default is not None and key not in self.values:
      return default
    return self.check_text(
      self.value(key), self.name(key), blank=default is not None
    )

  def id(self, key: str, default: str | None = None) -> str:
    """Like `text`, but whole numbers will do."""
    if default is not None and key not in self.values:
      return default
    return self.check_id(
      self.value(key), self.name(key), blank=default is not None
    )

  def score(self, key: str) -> float | None:
    """A finite number, or a string that reads as one; None if absent."""
    return as_score(self.values.get(key), self.name(key))

  def texts(self, key: str) -> tuple[str, ...]:
    """A visible text, or an array of at least one."""
    value, name = self.value(key), self.name(key)
    if isinstance(value, str):
      return (self.check_text(value, name),)
    if not isinstance(value, list):
      raise wrong_type(name, value, 'a string or an array of strings')
    if not value:
      raise BadRecord(
        Kind.EMPTY,
        f'{name}: found an empty array, expected at least one answer',
      )
    return tuple(
      self.check_text(text, f'{name}[{i}]') for i, text in enumerate(value)
    )

  def array(self, key: str, what: str) -> list[Any]:
    """An array of whatever."""
    value = self.value(key)
    if not isinstance(value, list):
      raise wrong_type(self.name(key), value, f'an array of {what}')
    return value

  def objects(self, key: str, what: str) -> list['Fields']:
    """An array of objects; an object of arrays, all as long, will do.

    The latter is how TFDS and Parquet files of Hugging Face store the former.
    """
    value = self.value(key)
    if isinstance(value, dict):
      columns = {k: v for k, v in value.items() if isinstance(v, list)}
      lengths = {len(column) for column in columns.values()}
      if len(columns) < len(value) or len(lengths) > 1:
        raise wrong_type(self.name(key), value, f'an array of {what}')
      value = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
      ]
    elif not isinstance(value, list):
      raise wrong_type(self.name(key), value, f'an array of {what}')
    return [
      Fields(item, f'{self.name(key)}[{i}]', self.max_text_bytes)
      for i, item in enumerate(value)
    ]

  def object(self, key: str) -> 'Fields':
    """An object."""
    return Fields(self.value(key), self.name(key), self.max_text_bytes)

  def check_id(self, value: Any, name: str, *, blank: bool = False) -> str:
    """Text, or the digits of a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
      return str(value)
    return self.check_text(value, name, blank=blank)

  def check_text(self, value: Any, name: str, *, blank: bool = False) -> str:
    """Text without control characters, within the limit."""
    if not isinstance(value, str):
      raise wrong_type(name, value, 'a string')
    if bad := _BAD_CHARACTER.search(value):
      raise _bad_character(name, bad)
    if not blank and not value.strip():
      raise BadRecord(
        Kind.EMPTY,
        f'{name}: found {"a blank" if value else "an empty"} string, '
        'expected visible text',
      )
    # A character has up to four bytes, and encoding takes time.
    if 4 * len(value) > self.max_text_bytes:
      size = len(value.encode())
      if size > self.max_text_bytes:
        raise BadRecord(
          Kind.TOO_LONG,
          f'{name}: found a text of {size:,} bytes, expected at most '
          f'{self.max_text_bytes:,} (max_text_bytes)',
        )
    return value


def as_score(value: Any, name: str) -> float | None:
  """A finite number, or a string that reads as one; None for None.

  Raises:
    BadRecord: it is neither.
  """
  if value is None:
    return None
  usable = isinstance(value, int | float | str) and not isinstance(value, bool)
  try:
    score = float(value) if usable else math.nan
  except (ValueError, OverflowError):
    score = math.nan
  if math.isfinite(score):
    return score
  raise wrong_type(name, value, 'a finite number')


def wrong_type(name: str, value: Any, expected: str) -> BadRecord:
  """The error that a value is not what was expected."""
  found = _TYPE_NAMES.get(type(value), type(value).__name__)
  if isinstance(value, bool | int | float | str):
    found += f' ({printable(json.dumps(value))})'
  return BadRecord(
    Kind.WRONG_TYPE, f'{name}: found {found}, expected {expected}'
  )


def unique(texts: Iterable[str]) -> tuple[str, ...]:
  """The texts in their order, each once."""
  return tuple(dict.fromkeys(texts))


def _bad_character(name: str, bad: re.Match[str]) -> BadRecord:
  code = ord(bad[0])
  kind, what = Kind.CONTROL_CHARACTER, ''
  if 0xDC80 <= code <= 0xDCFF:
    # Files that are not read by the line are decoded with surrogateescape.
    kind, what = Kind.INVALID_UTF8, f' (byte 0x{code - 0xDC00:02x})'
  elif 0xD800 <= code <= 0xDFFF:
    kind = Kind.LONE_SURROGATE
  return BadRecord(
    kind,
    f'{name}: found the character U+{code:04X}{what} at position '
    f'{bad.start() + 1}, expected text without control characters and '
    'lone surrogates',
  )
