"""The one exception type that users are meant to read, and its lists."""

import itertools
from collections.abc import Iterable, Sequence


class UserError(Exception):
  """A mistake in what the user gave: a flag, a file, a config field.

  Command-line programs show the message in one piece, without a traceback, and
  exit with status 1. So the message has to stand alone: where the mistake is,
  what was found, what was expected and what to do about it.
  """


class NotWrittenError(UserError):
  """A path that cannot be written: once it can, the command can go on."""


# A list in a message is given whole up to so many items, and cut to so few if
# it is longer.
_WHOLE, _CUT = 8, 3
# Characters of an item.
_LENGTH = 200


def shorten(text: object, most: int = _LENGTH) -> str:
  """Text from outside, fit for a message: one line, of bounded length.

  Args:
    text: what is shown, by its `str`.
    most: characters; of a longer text the start and the end are given.
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
  """A list of any length for a message: `a, b, c and 579 more`.

  Args:
    items: by their `str`; see `shorten`.
    none: in place of an empty list.
  """
  shown, more = _cut(items)
  if not shown:
    return none
  return ', '.join(shown) + (f' and {more:,} more' if more else '')


def lines(items: Iterable[object]) -> str:
  """As `several`, each item on an indented line of its own.

  There it may be longer: a line compares two values of bounded length.
  """
  shown, more = _cut(items, 3 * _LENGTH)
  if more:
    shown.append(f'and {more:,} more')
  return ''.join(f'\n  {item}' for item in shown)


def common_prefix(names: Sequence[str]) -> str:
  """The start that all of several dotted names share, up to a dot."""
  if len(names) < 2:
    return ''
  # What first and last of them share, all between them share.
  first, last = (name.split('.')[:-1] for name in (min(names), max(names)))
  shared = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
  )
  return ''.join(f'{part}.' for part, _ in shared)


def _cut(items: Iterable[object], most: int = _LENGTH) -> tuple[list[str], int]:
  """The items that are shown, and the number of the others."""
  items = list(items)
  shown = items if len(items) <= _WHOLE else items[:_CUT]
  return [shorten(item, most) for item in shown], len(items) - len(shown)
