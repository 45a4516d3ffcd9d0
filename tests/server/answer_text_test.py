"""Tests of vtokens.server.answer_text."""

import hypothesis
import pytest
from hypothesis import strategies

from vtokens.server.answer_text import TextEnd

# Few characters, so that stop texts and their starts are common.
_TEXTS = strategies.text(alphabet='ab \n', max_size=12)


def _given(pieces, stop, newline):
  end = TextEnd(stop, newline)
  passed = [end.add(piece) for piece in pieces]
  return ''.join([*passed, end.end()]), end.ended


def _expected(text, stop, newline):
  """The same, of the whole text at once."""
  if newline:
    text = text.lstrip()
  stops = [*stop, '\n'] if newline else stop
  at = min((text.find(s) for s in stops if s in text), default=len(text))
  found = text[:at]
  return (found.rstrip() if newline else found), at < len(text)


@hypothesis.given(
  strategies.lists(_TEXTS, max_size=6),
  strategies.lists(
    strategies.text(alphabet='ab \n', min_size=1, max_size=4), max_size=3
  ),
  strategies.booleans(),
)
def test_pieces_end_as_the_whole_text(pieces, stop, newline):
  found = _given(pieces, stop, newline)
  text, ended = _expected(''.join(pieces), stop, newline)
  assert found == (text, ended)


@pytest.mark.parametrize(
  'pieces, stop, newline, passed',
  [
    # What may begin a stop text waits.
    (['x en', 'd', 'less'], ['endless!'], False, ['x ', '', '']),
    (['x en', 'd', ' y'], ['endless!'], False, ['x ', '', 'end y']),
    ([' \n 1', '859 ', '\n2'], [], True, ['1', '859', '']),
    (['a ', ' b'], [], True, ['a', '  b']),
    (['a ', ' b'], [], False, ['a ', ' b']),
  ],
)
def test_what_is_held_back(pieces, stop, newline, passed):
  end = TextEnd(stop, newline)
  assert [end.add(piece) for piece in pieces] == passed


def test_nothing_comes_after_the_end():
  end = TextEnd(['!'], False)
  assert end.add('a!b') == 'a'
  assert (end.add('c'), end.end(), end.ended) == ('', '', True)
