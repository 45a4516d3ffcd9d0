"""Values of rows, checked when they are read."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from vtokens.data import cleaning, table_cells
from vtokens.data.checks import BadRecord, Kind, printable
from vtokens.host import errors

# A byte that is not UTF-8, in a file decoded with surrogateescape.
_BAD_BYTE = re.compile('[\udc80-\udcff]')
_TYPE_NAMES = {
  dict: 'an object',
  list: 'an array',
  str: 'a string',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  type(None): 'null',
}
# Stands for the value of a key that an object has more than once.
DUPLICATE = object()


class RowFields:
  """An object of a file, whose values are checked when they are read.

  A key whose value is null counts as absent: in columnar files a row has null
  for each key that it lacks.

  Args:
    values: the object.
    path: its place in the record, such as 'ctxs[3]'; '' for the record.
    max_text_bytes: length limit of a text, in bytes of UTF-8.
    notes: list for notes on what was left out or replaced; shared by the parts
      of a record.
    keep_unanswerable: whether a row is read whose source says that its question
      has no answer; otherwise it is a `BadRecord`.

  Attributes:
    values: the object's values without nulls.
    nulls: keys whose value is null.
    used: keys that were read.
    notes: see above.
    keep_unanswerable: see above.
    answerable: false once a key has said that the question has no answer.

  Raises:
    BadRecord: from every method, with the key, what was found and expected.
  """

  def __init__(
    self,
    values: Any,
    path: str,
    max_text_bytes: int,
    notes: list[str] | None = None,
    *,
    keep_unanswerable: bool = False,
  ):
    if not isinstance(values, dict):
      raise wrong_type(path or 'record', values, 'one JSON object')
    self.values: dict[str, Any] = {
      key: value for key, value in values.items() if value is not None
    }
    self.nulls = values.keys() - self.values.keys()
    self.used: set[str] = set()
    self.path = path
    self.max_text_bytes = max_text_bytes
    self.notes: list[str] = [] if notes is None else notes
    self.keep_unanswerable = keep_unanswerable
    self.answerable = True
    for key, value in values.items():
      if value is DUPLICATE:
        raise BadRecord(
          Kind.MALFORMED,
          f'{self.name(key)}: found more than once, expected once',
        )

  def part(self, values: Any, path: str) -> 'RowFields':
    """Wraps an object within this one."""
    return RowFields(values, path, self.max_text_bytes, self.notes)

  def __contains__(self, key: str) -> bool:
    return key in self.values

  def name(self, key: str) -> str:
    """The key with its path, printable in one line."""
    return f'{self.path}.{printable(key)}' if self.path else printable(key)

  def only(self, *keys: str) -> str:
    """Returns the one of several equivalent keys that the object has."""
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
    """Makes the error for a missing key."""
    keys = errors.several(map(printable, self.values), 'no key')
    return BadRecord(
      Kind.MISSING_KEY,
      f'{self.name(key)}: missing, found only {keys}, expected this key too',
    )

  def get(self, key: str, default: Any = None) -> Any:
    """The unchecked value of a key; the default if the key is absent."""
    self.used.add(key)
    return self.values.get(key, default)

  def value(self, key: str) -> Any:
    """The unchecked value of a required key."""
    if key not in self.values:
      raise self.missing(key)
    return self.get(key)

  def text(self, key: str, default: str | None = None) -> str:
    """A text. With a default it may be blank or absent, else neither."""
    if default is not None and key not in self.values:
      return default
    return self.check_text(
      self.value(key), self.name(key), blank=default is not None
    )

  def id(self, key: str, default: str | None = None) -> str:
    """Like `text`; also accepts a whole number."""
    if default is not None and key not in self.values:
      return default
    return self.check_id(
      self.value(key), self.name(key), blank=default is not None
    )

  def body(self, key: str) -> str:
    """A text that may be blank; '' for null. The key is required."""
    return '' if key in self.nulls else self.text(key, '') or self.value(key)

  def score(self, key: str) -> float | None:
    """A finite number, or a string that spells one; None if absent."""
    return as_score(self.get(key), self.name(key))

  def texts(self, key: str) -> tuple[str, ...]:
    """A text, or an array of at least one text; none may be blank."""
    value, name = self._parsed(key), self.name(key)
    if isinstance(value, str):
      return (self.check_text(value, name),)
    if not isinstance(value, list):
      raise wrong_type(name, value, 'a string or an array of strings')
    texts = tuple(
      self.check_text(text, name) for name, text in self.items(key, 'strings')
    )
    if not texts:
      raise BadRecord(
        Kind.EMPTY,
        f'{name}: found an empty array, expected at least one answer',
      )
    return texts

  def array(self, key: str, what: str) -> list[Any]:
    """An array; `what` names its items in messages."""
    value = self._parsed(key)
    if not isinstance(value, list):
      raise wrong_type(self.name(key), value, f'an array of {what}')
    return value

  def items(self, key: str, what: str) -> list[tuple[str, Any]]:
    """(name for messages, item) of each item of an array that is not null."""
    return [
      (f'{self.name(key)}[{i}]', item)
      for i, item in enumerate(self.array(key, what))
      if item is not None
    ]

  def objects(self, key: str, what: str) -> list['RowFields']:
    """An array of objects, or an object of arrays of equal length.

    TFDS and Hugging Face's Parquet files store the former as the latter.
    """
    value = self._parsed(key)
    if not isinstance(value, dict):
      return [self.part(item, name) for name, item in self.items(key, what)]
    columns = {k: v for k, v in value.items() if isinstance(v, list)}
    lengths = {len(column) for column in columns.values()}
    others = [v for k, v in value.items() if k not in columns]
    if any(v is not None for v in others) or len(lengths) > 1:
      raise wrong_type(self.name(key), value, f'an array of {what}')
    return [
      self.part(dict(zip(columns, row, strict=True)), f'{self.name(key)}[{i}]')
      for i, row in enumerate(zip(*columns.values(), strict=True))
    ]

  def object(self, key: str) -> 'RowFields':
    """The object of a key."""
    return self.part(self._parsed(key), self.name(key))

  def _parsed(self, key: str) -> Any:
    """The value of a key; a table's cell is parsed."""
    value = table_cells.parsed(self.value(key))
    if isinstance(value, table_cells.TextCell) and table_cells.is_like_an_array(
      value
    ):
      raise BadRecord(
        Kind.MALFORMED,
        f'{self.name(key)}: found {printable(value)}, expected an array as '
        'JSON or Python writes it, with commas',
      )
    return value

  def check_id(self, value: Any, name: str, *, blank: bool = False) -> str:
    """Checks an id: a text or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
      return str(value)
    return self.check_text(value, name, blank=blank)

  def check_text(self, value: Any, name: str, *, blank: bool = False) -> str:
    """Checks a text, and replaces its control characters."""
    if not isinstance(value, str):
      raise wrong_type(name, value, 'a string')
    if bad := _BAD_BYTE.search(value):
      raise BadRecord(
        Kind.INVALID_UTF8,
        f'{name}: found byte 0x{ord(bad[0]) - 0xDC00:02x} at position '
        f'{bad.start() + 1}, expected UTF-8',
      )
    cleaned = cleaning.clean(value)
    if cleaned is not value and cleaning.NOTE not in self.notes:
      self.notes.append(cleaning.NOTE)
    text = str(cleaned)
    if not blank and not text.strip():
      raise BadRecord(
        Kind.EMPTY,
        f'{name}: found {"a blank" if text else "an empty"} string, '
        'expected visible text',
      )
    # A character has up to four bytes, and encoding takes time.
    if 4 * len(text) > self.max_text_bytes:
      size = len(text.encode())
      if size > self.max_text_bytes:
        raise BadRecord(
          Kind.TOO_LONG,
          f'{name}: found a text of {size:,} bytes, expected at most '
          f'{self.max_text_bytes:,} (max_text_bytes)',
        )
    return text


def as_score(value: Any, name: str) -> float | None:
  """Converts a finite number, or a string that spells one; None stays None.

  Raises:
    BadRecord: the value is neither.
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
  """Makes the error for a value of a wrong type."""
  kind = str if isinstance(value, str) else type(value)
  found = _TYPE_NAMES.get(kind, kind.__name__)
  if isinstance(value, bool | int | float | str):
    found += f' ({printable(json.dumps(value))})'
  return BadRecord(
    Kind.WRONG_TYPE, f'{name}: found {found}, expected {expected}'
  )


def unique(texts: Iterable[str]) -> tuple[str, ...]:
  """Drops repeated texts; keeps the order."""
  return tuple(dict.fromkeys(texts))
