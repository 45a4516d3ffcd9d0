"""Tests of vtokens.sweeping.halving."""

import itertools
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from vtokens.host import errors
from vtokens.sweeping import halving


def _plan(candidates, steps, every, eta=3, finalists=1):
  found = halving.plan(candidates, steps, every, eta=eta, finalists=finalists)
  return [(rung.step, rung.candidates) for rung in found]


@pytest.mark.parametrize(
  'arguments, expected',
  [
    # The table of Hyperband (arXiv 1603.06560): 81 of 81 steps, eta 3.
    ((81, 81, 1), [(1, 81), (3, 27), (9, 9), (27, 3), (81, 1)]),
    ((16, 16, 1, 2), [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]),
    ((6, 112, 4), [(12, 6), (36, 2), (112, 1)]),
    ((6, 112, 14, 3, 2), [(42, 6), (112, 2)]),
    ((4, 10, 3, 3, 4), [(10, 4)]),
    ((2, 112, 56), [(56, 2), (112, 1)]),
  ],
)
def test_plan(arguments, expected):
  assert _plan(*arguments) == expected


@hypothesis.given(
  st.integers(2, 100),
  st.integers(1, 2000),
  st.integers(1, 500),
  st.integers(2, 5),
  st.integers(1, 10),
)
def test_rungs_end_at_validations_or_advice_helps(
  candidates, steps, every, eta, finalists
):
  try:
    rungs = _plan(candidates, steps, every, eta, finalists)
  except errors.UserError as e:
    field, number = re.match(
      r'config\.train\.(\w+): expected (?:a smaller number, e\.g\.|at least) '
      r'(\d+),',
      str(e),
    ).groups()
    if field == 'num_steps':
      steps, every = int(number), 1
    else:
      every = int(number)
    rungs = _plan(candidates, steps, every, eta, finalists)
  for (a, more), (b, fewer) in itertools.pairwise(rungs):
    assert a < b
    assert more > fewer >= more / eta
    assert a % every == 0
  assert rungs[0][1] == candidates
  assert rungs[-1] == (steps, min(candidates, finalists))
