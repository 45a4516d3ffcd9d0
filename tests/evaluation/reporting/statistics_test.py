"""Intervals and tests against scipy, exact enumeration and simulation."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from vtokens.evaluation.reporting import statistics


def bootstrap_interval(groups, **settings):
  """The interval of one result."""
  low, high = statistics.bootstrap_intervals(
    [group[:, None] for group in groups], **settings
  )
  return float(low[0]), float(high[0])


def macro_means(groups):
  """Every equally likely resample, by brute force: the exact distribution."""
  total = np.zeros(1)
  for group in groups:
    rows = np.array(list(itertools.product(group, repeat=len(group))))
    total = np.add.outer(total, rows.mean(axis=1)).ravel()
  return total / len(groups)


def exact_p(a, b):
  """Over all assignments of signs, by brute force, in whole numbers."""
  differences = [x - y for x, y in zip(a, b, strict=True)]
  scale = [1 / (len(d) * len(differences)) for d in differences]
  parts = np.concatenate(
    [d * s for d, s in zip(differences, scale, strict=True)]
  )
  signs = np.array(list(itertools.product([1, -1], repeat=len(parts))))
  found = np.rint(np.abs(signs @ parts) * 1e12)
  return np.mean(found >= np.rint(np.abs(parts.sum()) * 1e12))


def test_macro_mean_is_not_the_mean_of_all_questions():
  groups = [np.array([1.0]), np.array([0.0, 0.0, 1.0, 0.0])]
  assert statistics.macro_mean(groups) == 0.625
  assert statistics.macro_mean(groups[1:]) == 0.25


@pytest.mark.parametrize('level', [0.5, 0.8, 0.95])
@pytest.mark.parametrize('sizes', [(5,), (3, 5)])
def test_bootstrap_has_the_exact_distribution(sizes, level):
  rng = np.random.default_rng(1)
  groups = [rng.random(n) for n in sizes]
  exact = macro_means(groups)
  interval = bootstrap_interval(groups, resamples=20_000, seed=0, level=level)
  shares = (1 - level) / 2, (1 + level) / 2
  for end, share in zip(interval, shares, strict=True):
    # The distribution has steps; its step at the end is where it should be.
    assert np.mean(exact < end - 1e-9) < share + 0.01
    assert np.mean(exact <= end + 1e-9) > share - 0.01
  if len(sizes) == 2:
    pooled = macro_means([np.concatenate(groups)[:6]])
    assert abs(np.quantile(pooled, 0.05) - np.quantile(exact, 0.05)) > 0.02


@pytest.mark.parametrize('binary', [True, False])
def test_bootstrap_agrees_with_scipy(binary):
  rng = np.random.default_rng(2)
  values = rng.random(300) ** 3
  if binary:
    values = (values > 0.4).astype(np.float64)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method='percentile', rng=3
  )
  found = bootstrap_interval([values], resamples=20_000, seed=4)
  # Standard errors of the quantiles are about 2 % of the standard error.
  tolerance = 0.08 * expected.standard_error
  low, high = expected.confidence_interval
  assert found == pytest.approx((low, high), abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
  'sizes', [pytest.param((150,), marks=pytest.mark.exhaustive), (40, 160)]
)
def test_coverage(sizes):
  """Of 400 simulated evaluations about 95 % have the truth inside."""
  rng = np.random.default_rng(5)
  rates = rng.uniform(0.25, 0.6, len(sizes))
  inside = 0
  for trial in range(400):
    groups = [
      (rng.random(n) < rate).astype(np.float64)
      for n, rate in zip(sizes, rates, strict=True)
    ]
    low, high = bootstrap_interval(groups, resamples=400, seed=trial)
    inside += low <= rates.mean() <= high
  # Four standard errors of the share below, and what is gained by the steps of
  # a distribution of so few values above.
  assert 0.905 < inside / 400 < 0.985


def test_resamples_are_the_same_for_all_conditions():
  rng = np.random.default_rng(6)
  columns = [rng.random((50, 3)), rng.random((20, 3))]
  settings = {'resamples': 300, 'seed': 7}
  low, high = statistics.bootstrap_intervals(columns, **settings)
  for i in range(3):
    groups = [group[:, i] for group in columns]
    found = bootstrap_interval(groups, **settings)
    assert found == pytest.approx((low[i], high[i]), abs=1e-12)
    # A condition better by 0.1 everywhere is so at both ends.
    better = bootstrap_interval([group + 0.1 for group in groups], **settings)
    assert better == pytest.approx((low[i] + 0.1, high[i] + 0.1), abs=1e-12)
  other = statistics.bootstrap_intervals(columns, resamples=300, seed=8)
  assert not np.isclose(other[0], low).any()


def test_groups_are_resampled_independently():
  """Equal groups: with the same draws the variance would not be halved."""
  values = np.random.default_rng(9).random(80)
  low, high = bootstrap_interval([values], resamples=4000, seed=0)
  both = bootstrap_interval([values] * 2, resamples=4000, seed=0)
  assert (both[1] - both[0]) / (high - low) == pytest.approx(
    np.sqrt(0.5), rel=0.06
  )


def test_wider_at_a_higher_level_and_narrower_with_more_questions():
  values = (np.arange(400) % 3 == 0).astype(np.float64)
  widths = [
    np.ptp(
      bootstrap_interval([values[:n]], resamples=1000, seed=0, level=level)
    )
    for n, level in ((400, 0.8), (400, 0.95), (100, 0.95))
  ]
  assert widths[0] < widths[1] < widths[2]
  constant = bootstrap_interval([np.ones(9), np.zeros(4)], resamples=50, seed=0)
  assert constant == pytest.approx((0.5, 0.5), abs=1e-12)


def test_difference_is_paired():
  rng = np.random.default_rng(10)
  a = [rng.random(200), rng.random(60)]
  b = [x + 0.05 + 0.001 * rng.random(len(x)) for x in a]
  differences = [y - x for x, y in zip(a, b, strict=True)]
  mean = statistics.macro_mean(differences)
  low, high = bootstrap_interval(differences, resamples=500, seed=0)
  # The spread of the questions themselves is a hundred times this.
  assert 0.05 < low < mean < high < 0.051
  assert statistics.paired_test(a, b, permutations=500, seed=0) == 1 / 501


@pytest.mark.parametrize('sizes', [(10,), (5, 7), (1, 3, 6)])
@pytest.mark.parametrize('kind', ['continuous', 'em'])
def test_p_is_that_of_all_permutations(sizes, kind):
  rng = np.random.default_rng(11)
  a, b = ([rng.random(n) for n in sizes] for _ in range(2))
  if kind == 'em':
    a, b = ([(x > c).astype(float) for x in g] for g, c in ((a, 0.3), (b, 0.7)))
  expected = exact_p(a, b)
  assert 0.01 < expected < 0.99
  found = statistics.paired_test(a, b, permutations=40_000, seed=0)
  assert found == pytest.approx(expected, abs=0.01)
  assert statistics.paired_test(b, a, permutations=40_000, seed=0) == found
  if len(sizes) == 1:
    by_scipy = scipy.stats.permutation_test(
      (a[0], b[0]),
      lambda x, y, axis: np.mean(x - y, axis=axis),
      permutation_type='samples',
      vectorized=True,
      n_resamples=np.inf,
    )
    assert by_scipy.pvalue == pytest.approx(expected, abs=1e-12)


def test_equal_sums_count_although_rounded_differently():
  # Sums of tenths depend on their order in the last digit: without a tolerance
  # 0.565 comes out instead of 0.638.
  tenths = np.array([3, 1, -3, 3, 2, 3, -2, -3, 3, -3, 1, 0])
  signs = np.array(list(itertools.product([1, -1], repeat=12)))
  expected = np.mean(np.abs(signs @ tenths) >= tenths.sum())
  found = statistics.paired_test(
    [tenths / 10], [np.zeros(12)], permutations=40_000, seed=0
  )
  assert found == pytest.approx(expected, abs=0.01)


def test_questions_without_a_difference_do_not_matter():
  rng = np.random.default_rng(12)
  a, b = rng.random(30), rng.random(30)
  p = statistics.paired_test([a], [b], permutations=2000, seed=0)
  ties = np.ones(70)
  with_ties = statistics.paired_test(
    [np.concatenate([ties, a])],
    [np.concatenate([ties, b])],
    permutations=2000,
    seed=0,
  )
  assert with_ties == p


def test_no_difference_at_all():
  a = [np.ones(5), np.zeros(3)]
  assert statistics.paired_test(a, a, permutations=99, seed=0) == 1


def test_p_is_uniform_where_there_is_nothing_to_find():
  rng = np.random.default_rng(13)
  continuous, em = [], []
  for trial in range(1000):
    a, b = ([rng.random(30), rng.random(12)] for _ in range(2))
    continuous.append(
      statistics.paired_test(a, b, permutations=199, seed=trial)
    )
    a, b = ([(x > 0.6).astype(float) for x in group] for group in (a, b))
    em.append(statistics.paired_test(a, b, permutations=199, seed=trial))
  assert scipy.stats.kstest(continuous, 'uniform').pvalue > 0.01
  for level in (0.01, 0.05, 0.2, 0.5):
    error = np.sqrt(level * (1 - level) / 1000)
    assert abs(np.mean(np.array(continuous) <= level) - level) < 3.5 * error
    # Few values are possible: p may be too large, never too small.
    assert np.mean(np.array(em) <= level) < level + 3.5 * error


def test_memory_does_not_grow_with_the_draws():
  rng = np.random.default_rng(14)
  groups = [rng.random(20_000), rng.random(5000)]
  other = [rng.random(20_000), rng.random(5000)]
  tracemalloc.start()
  try:
    bootstrap_interval(groups, resamples=150, seed=0)
    statistics.paired_test(groups, other, permutations=600, seed=0)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # All draws at once would be 24 MB (bootstrap) and 120 MB (signs as f64).
  assert peak < 20e6


def test_what_has_no_mean_is_refused():
  with pytest.raises(ValueError, match='no groups'):
    statistics.macro_mean([])
  with pytest.raises(ValueError, match=r'groups of \[2, 0\] questions'):
    bootstrap_interval([np.ones(2), np.ones(0)], resamples=9, seed=0)
  with pytest.raises(ValueError, match='expected the same questions'):
    statistics.paired_test([np.ones(2)], [np.ones(3)], permutations=9, seed=0)
  with pytest.raises(ValueError, match='no groups'):
    statistics.paired_test([], [], permutations=9, seed=0)
