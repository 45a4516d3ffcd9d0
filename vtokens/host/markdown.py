"""Text of others in Markdown: names of data and runs, templates, paths."""

import re

# Numbers and intervals as tables have them: in them nothing is marked up.
_NUMBERS = re.compile(r'[-+<\d.,/e% ]*(\[[-+\d.,e ]*\])?')
# Whatever begins markup of CommonMark, of GitHub's tables, links and formulas.
# An underscore inside a word does not.
_MARKS = re.compile(
  r'[\\`*\[\]<>|&~$#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.',
  re.IGNORECASE,
)
# Controls, and what makes text run the other way.
_UNSEEN = re.compile('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


def text(value: str) -> str:
  """A text as itself, in one line; numbers and intervals as they are."""
  value = _line(value)
  if _NUMBERS.fullmatch(value):
    return value
  return _MARKS.sub(lambda mark: f'\\{mark[0]}', value)


def code(value: str) -> str:
  """A text as code in a line; not for tables, where a | would end a cell."""
  value = _line(value)
  fence = '`' * (_longest(value) + 1)
  # One space beside each fence is left out when it is shown.
  space = ' ' * (value.startswith('`') or value.endswith('`') or not value)
  return f'{fence}{space}{value}{space}{fence}'


def block(value: str, language: str) -> str:
  """Lines of code."""
  fence = '`' * max(3, _longest(value) + 1)
  return f'{fence}{language}\n{value}\n{fence}'


def _line(value: str) -> str:
  return _UNSEEN.sub('\ufffd', ' '.join(value.split()))


def _longest(value: str) -> int:
  """Length of the longest run of backticks."""
  return max(map(len, re.findall('`+', value)), default=0)
