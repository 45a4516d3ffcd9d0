"""The curve of risk over coverage, against a count at each threshold."""

import itertools

import numpy as np
import pytest

from vtokens.scoring import coverage


def test_a_curve_by_hand():
  found = coverage.coverage_risk(
    np.array([-0.1, -3.0, -0.5, -0.2, 0.0]),
    np.array([1.0, 0.0, 1.0, 0.0, 1.0]),
    np.array([False, False, False, False, True]),
  )
  # In the order of confidence: right, wrong, right, wrong; the last refused.
  np.testing.assert_allclose(found.coverage, [20, 40, 60, 80])
  np.testing.assert_allclose(found.risk, [0, 50, 100 / 3, 50])
  assert found.area == pytest.approx((0 + 50 + 100 / 3 + 50) / 4)


def test_a_curve_by_thresholds():
  rng = np.random.default_rng(0)
  confidence = rng.permutation(np.linspace(-4, 0, 60))
  right = (rng.random(60) < 0.5).astype(float)
  refused = rng.random(60) < 0.2
  found = coverage.coverage_risk(confidence, right, refused)
  expected = []
  for threshold in sorted(confidence[~refused], reverse=True):
    shown = (confidence >= threshold) & ~refused
    wrong = (1 - right)[shown].sum()
    expected.append((100 * shown.sum() / 60, 100 * wrong / shown.sum()))
  np.testing.assert_allclose(
    np.stack([found.coverage, found.risk], axis=1), expected
  )
  assert found.area == pytest.approx(np.mean([risk for _, risk in expected]))


def test_equal_confidence_is_the_mean_over_all_orders():
  confidence = np.array([-1.0, -1.0, -1.0, -2.0])
  right = np.array([1.0, 0.0, 0.0, 1.0])
  none = np.zeros(4, bool)
  found = coverage.coverage_risk(confidence, right, none)
  orders = [
    100 * (1 - np.cumsum([*order, 1.0]) / np.arange(1, 5))
    for order in itertools.permutations(right[:3])
  ]
  np.testing.assert_allclose(found.risk, np.mean(orders, axis=0))


def test_long_curves_are_thinned_but_not_their_area():
  rng = np.random.default_rng(1)
  confidence, right = rng.normal(size=5000), rng.random(5000).round()
  found = coverage.coverage_risk(confidence, right, np.zeros(5000, bool))
  assert len(found.coverage) == len(found.risk) == 100
  assert (found.coverage[0], found.coverage[-1]) == (100 / 5000, 100)
  order = np.argsort(-confidence)
  risks = 100 * (1 - np.cumsum(right[order]) / np.arange(1, 5001))
  assert found.area == pytest.approx(risks.mean())


def test_all_refused():
  assert coverage.coverage_risk(np.zeros(2), np.zeros(2), np.ones(2, bool)) is (
    None
  )
