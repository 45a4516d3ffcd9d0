"""The table of scores that a run prints."""

import pytest
import scipy.stats

from vtokens.run import run_summary


@pytest.mark.parametrize(('right', 'n'), [(0, 100), (34, 100), (7, 7), (1, 3)])
def test_intervals(right, n):
  row = {'em': 100 * right / n, 'f1': 50.0, 'n': n}
  [head, line] = run_summary.format_scores('x', {'tokens': row}).splitlines()
  interval = scipy.stats.binomtest(right, n).proportion_ci(method='wilson')
  low, high = (f'{100 * abs(x):.1f}' for x in interval)
  assert line.split()[0] == 'tokens'
  assert f'[{low:>4}, {high:>5}]' in line
  assert len(head) == len(line)


def test_no_questions():
  row = {'em': 0.0, 'f1': 0.0, 'n': 0}
  [_, line] = run_summary.format_scores('x', {'tokens': row}).splitlines()
  assert '[' not in line
