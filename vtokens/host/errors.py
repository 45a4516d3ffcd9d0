"""The exception whose messages users read, and lists in messages."""

import itertools
from collections.abc import Iterable, Sequence


class UserError(Exception):
  """A mistake in the user's input: a flag, a file, a config field.

  Programs print its message without a traceback and exit with status 1. So the
  message must be complete: where the mistake is, what was found, what was
  expected and what to do about it.
  """


class NotWrittenError(UserError):
  """A path cannot be written; the command can be repeated once it can."""


# A message lists up to `_WHOLE` items; of a longer list it shows `_CUT`.
_WHOLE, _CUT = 8, 3
# Most characters of an item.
_LENGTH = 200


def shorten(text: object, most: int = _LENGTH) -> str:
  """Makes any text fit for a message: one line of bounded length.

  Args:
    text: shown by its `str`.
    most: most characters; a longer text is cut to its start and its end.
  """
  text = str(text)
  length = len(text)
  if length > most:
    text = (
      f'{text[: most * 2 // 3]}... ({length:,} characters) '
      f'...{text[-most // 4 :]}'
    )
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def several(items: Iterable[object], none: str = 'none') -> str:
  """Joins items for a message: `a, b, c and 579 more`.

  Args:
    items: shown by their `str`; see `shorten`.
    none: result for an empty list.
  """
  shown, more = _cut(items)
  if not shown:
    return none
  return ', '.join(shown) + (f' and {more:,} more' if more else '')


def lines(items: Iterable[object]) -> str:
  """Lists items for a message, each on an indented line of its own.

  Items may be longer than those of `several`: a line compares two values.
  """
  shown, more = _cut(items, 3 * _LENGTH)
  if more:
    shown.append(f'and {more:,} more')
  return ''.join(f'\n  {item}' for item in shown)


def common_prefix(names: Sequence[str]) -> str:
  """Finds the common start of dotted names, up to a dot."""
  if len(names) < 2:
    return ''
  # All names share what the first and the last in order share.
  first, last = (name.split('.')[:-1] for name in (min(names), max(names)))
  shared = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
  )
  return ''.join(f'{part}.' for part, _ in shared)


def _cut(items: Iterable[object], most: int = _LENGTH) -> tuple[list[str], int]:
  """Returns the items to show, and the number of the others."""
  items = list(items)
  shown = items if len(items) <= _WHOLE else items[:_CUT]
  return [shorten(item, most) for item in shown], len(items) - len(shown)
