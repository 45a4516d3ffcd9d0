"""The table of scores that a run prints."""

import math

import pytest

from vtokens.run import run_summary


def _wilson(share, n):
  """Wilson's interval, from the formula in his paper of 1927."""
  z = 1.959963984540054
  centre = share + z * z / (2 * n)
  half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  return [100 * (centre + s * half) / (1 + z * z / n) for s in (-1, 1)]


@pytest.mark.parametrize(('right', 'n'), [(0, 100), (34, 100), (7, 7), (1, 3)])
def test_intervals(right, n):
  row = {'em': 100 * right / n, 'f1': 50.0, 'n': n}
  [head, line] = run_summary.format_scores('x', {'tokens': row}).splitlines()
  low, high = (f'{abs(x):.1f}' for x in _wilson(right / n, n))
  assert line.split()[0] == 'tokens'
  assert f'[{low:>4}, {high:>5}]' in line
  assert len(head) == len(line)


def test_no_questions():
  row = {'em': 0.0, 'f1': 0.0, 'n': 0}
  [_, line] = run_summary.format_scores('x', {'tokens': row}).splitlines()
  assert '[' not in line
