"""Escapes text for Markdown: names of data and runs, templates, paths."""

import re

# Numbers and intervals in tables need no escapes.
_NUMBERS = re.compile(r'[-+<\d.,/e% ]*(\[[-+\d.,e ]*\])?')
# Characters that begin markup in CommonMark, or in GitHub's tables, links and
# formulas. An underscore inside a word does not.
_MARKS = re.compile(
  r'[\\`*\[\]<>|&~$#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.',
  re.IGNORECASE,
)
# Control characters, and marks that reverse the direction of text.
_UNSEEN = re.compile('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


def text(value: str) -> str:
  """Escapes a text, in one line; numbers and intervals stay as they are."""
  value = _line(value)
  if _NUMBERS.fullmatch(value):
    return value
  return _MARKS.sub(lambda mark: f'\\{mark[0]}', value)


def code(value: str) -> str:
  """Marks a text as code in a line; not for tables, where | ends a cell."""
  value = _line(value)
  fence = '`' * (_longest(value) + 1)
  # Renderers drop one space beside each fence.
  space = ' ' * (value.startswith('`') or value.endswith('`') or not value)
  return f'{fence}{space}{value}{space}{fence}'


def block(value: str, language: str) -> str:
  """Marks lines as code."""
  fence = '`' * max(3, _longest(value) + 1)
  return f'{fence}{language}\n{value}\n{fence}'


def _line(value: str) -> str:
  return _UNSEEN.sub('\ufffd', ' '.join(value.split()))


def _longest(value: str) -> int:
  """Counts the longest run of backticks."""
  return max(map(len, re.findall('`+', value)), default=0)
