"""Refusals, against scikit-learn."""

import random

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
