"""Sums over shards of questions."""

import functools
import itertools
import operator

import numpy as np
import pytest

from vtokens.evaluation.cells import Answer, Cell, CellResult
from vtokens.evaluation.totals import Totals

PREDICTIONS = [
  *(['Paris', 'Rome', 'the old town', '', 'Paris, France', 'x'] * 3),
  'Paris',
]
STOPS = ['end', 'newline', 'length', 'end', 'length']


@pytest.fixture
def result() -> CellResult:
  rng = np.random.default_rng(0)
  n = len(PREDICTIONS)
  return CellResult(
    cell=Cell('squad', 'base', 'prompt'),
    answers=[
      Answer(text, len(text.split()), STOPS[i % len(STOPS)])
      for i, text in enumerate(PREDICTIONS)
    ],
    shown=[()] * n,
    values={
      'em': (rng.random(n) < 0.4).astype(np.float64),
      'f1': rng.random(n),
      'contains': (rng.random(n) < 0.6).astype(np.float64),
    },
  )


def shard(result: CellResult, rows: slice) -> CellResult:
  return CellResult(
    cell=result.cell,
    answers=result.answers[rows],
    shown=result.shown[rows],
    values={name: value[rows] for name, value in result.values.items()},
  )


# Three unequal shards, and four of which the second is empty.
@pytest.mark.parametrize('cuts', [(0, 2, 13, 19), (0, 5, 5, 6, 19)])
def test_shards_add_up_to_the_whole(result, cuts):
  parts = [
    Totals.of_cell(shard(result, slice(a, b)))
    for a, b in itertools.pairwise(cuts)
  ]
  assert [part.n for part in parts] == list(np.diff(cuts))
  expected = {name: value.mean() for name, value in result.values.items()}
  expected |= {
    'num_tokens': np.mean([a.num_tokens for a in result.answers]),
    # 19 answers: the five stops three times, and then the first four.
    'end': 8 / 19,
    'newline': 4 / 19,
    'length': 7 / 19,
  }
  for order in (parts, parts[::-1]):
    total = functools.reduce(operator.add, order)
    assert total.n == 19
    assert total.means() == pytest.approx(expected, abs=1e-12)
  assert sum(parts, Totals()).means() == pytest.approx(expected, abs=1e-12)


def test_means_of_shards_must_not_be_averaged():
  right = Totals.of({'em': np.ones(1)})
  wrong = Totals.of({'em': np.zeros(3)})
  assert (right.means()['em'] + wrong.means()['em']) / 2 == 0.5
  assert (right + wrong).means() == {'em': 0.25}


def test_an_empty_shard():
  some = Totals.of({'em': np.array([1.0, 0.0])})
  empty = Totals.of({'em': np.zeros(0)})
  for total in (some + empty, empty + some, some + Totals(), Totals() + some):
    assert (total.n, total.sums) == (2, {'em': 1.0})
  assert (empty + Totals()).n == 0
  with pytest.raises(ValueError, match='no questions'):
    (empty + empty).means()


def test_what_does_not_belong_together():
  with pytest.raises(ValueError, match=r"\['em'\] cannot .* \['f1'\]"):
    Totals.of({'em': np.ones(1)}) + Totals.of({'f1': np.ones(1)})
  with pytest.raises(ValueError, match="'em': 2, 'f1': 3"):
    Totals.of({'em': np.ones(2), 'f1': np.ones(3)})
  with pytest.raises(ValueError, match='expected the same questions'):
    Totals.of({})
