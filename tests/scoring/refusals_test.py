"""Refusals, against scikit-learn."""

import random

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vtokens.scoring import refusals


@pytest.mark.parametrize(
  ('prediction', 'expected'),
  [
    ("I don't know.", True),
    ('i dont know', True),
    ("  I don't  know!", True),
    ("I don't know who it was.", False),
    ('Paris', False),
    ('', False),
  ],
)
def test_a_refusal_equals_the_text_after_normalisation(prediction, expected):
  assert refusals.is_refusal(prediction, "I don't know.") == expected


def test_a_refusal_without_spaces():
  assert refusals.is_refusal('我不知道', '我不知道。')
  assert not refusals.is_refusal('北京', '我不知道。')


@pytest.mark.parametrize('seed', range(5))
def test_scores_are_those_of_sklearn(seed):
  draw = random.Random(seed)
  answerable = [draw.random() < 0.6 for _ in range(50)]
  refused = [draw.random() < 0.4 for _ in range(50)]
  found = refusals.score(refused, answerable)
  precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
    [not has for has in answerable], refused, average='binary'
  )
  assert (found.precision, found.recall, found.f1) == pytest.approx(
    (100 * precision, 100 * recall, 100 * f1)
  )
  assert (found.refused, found.n) == (sum(refused), 50)
  assert found.unanswerable == 50 - sum(answerable)


def test_nothing_is_refused():
  found = refusals.score([False, False], [True, False])
  assert (found.precision, found.recall, found.f1) == (0, 0, 0)


def test_without_unanswerable_questions_there_are_no_scores():
  assert refusals.score([True, False], [True, True]) is None


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Margins, and EM with NaN for unanswerable questions."""
  rng = np.random.default_rng(seed)
  answerable = rng.random(60) < 0.6
  margins = rng.normal(size=60) - 2 * answerable
  right = np.where(answerable, rng.random(60) < 0.4, np.nan)
  return margins, right


@pytest.mark.parametrize('seed', range(3))
def test_a_curve_is_that_of_sklearn(seed):
  margins, right = _draw(seed)
  # A bias that refuses no question.
  found = refusals.curve(margins, np.zeros(60, bool), right, -100.0)
  precision, recall, thresholds = sklearn_metrics.precision_recall_curve(
    np.isnan(right), margins
  )
  # Theirs falls in thresholds, and has no point without refusals.
  assert found.bias[0] == -100
  assert found.precision[1:] == pytest.approx(100 * precision[-2::-1])
  assert found.recall[1:] == pytest.approx(100 * recall[-2::-1])
  assert (np.diff(found.bias) > 0).all()
  assert (found.bias[1:] > -thresholds[::-1]).all()
  assert (found.bias[1:-1] < -thresholds[-2::-1]).all()
  em = [
    100 * np.where(margins + bias > 0, 0, right)[~np.isnan(right)].mean()
    for bias in found.bias
  ]
  assert found.em == pytest.approx(em)


def test_a_curve_begins_with_the_refusals_there_were():
  margins = np.array([1.0, -1.0, -2.0, 0.5, -3.0])
  right = np.array([np.nan, 1.0, np.nan, 0.0, 1.0])
  # The fourth begins like the refusal, but is another answer.
  refused = np.array([True, False, False, False, False])
  found = refusals.curve(margins, refused, right, 0.25)
  assert found.bias == pytest.approx([0.25, 1.5, 2.5, 4.0])
  assert found.recall == pytest.approx([50, 50, 100, 100])
  assert found.precision == pytest.approx([100, 50, 200 / 3, 50])
  assert found.em == pytest.approx([200 / 3, 100 / 3, 100 / 3, 0])
  assert found.best(0) == 0
  assert found.best(34) == 2


def test_an_answer_without_a_margin_is_never_refused():
  found = refusals.curve(
    np.array([np.nan, -1.0, -2.0]),
    np.zeros(3, bool),
    np.array([np.nan, np.nan, 1.0]),
    0.0,
  )
  assert found.recall == pytest.approx([0, 50, 50])


def test_a_curve_has_100_points():
  rng = np.random.default_rng(0)
  right = np.where(rng.random(1000) < 0.5, 1.0, np.nan)
  found = refusals.curve(rng.normal(size=1000), np.zeros(1000, bool), right, -9)
  assert len(found.bias) == 100
  assert (found.recall[-1], found.em[-1]) == (100, 0)


def test_without_both_kinds_of_questions_there_is_no_curve():
  for right in ([1.0, 0.0], [np.nan, np.nan]):
    assert (
      refusals.curve(np.zeros(2), np.zeros(2, bool), np.array(right), 0) is None
    )
