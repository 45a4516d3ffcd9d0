"""Tests of vtokens.retrieval.topk."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from vtokens.retrieval import topk

# Few different values, so that many are equal.
SCORES = hnp.arrays(
  np.float32,
  st.integers(0, 60),
  elements=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]),
)


def by_sorting(scores, k):
  found = sorted(
    (-score, row) for row, score in enumerate(scores.tolist()) if score
  )[:k]
  rows = [row for _, row in found] + [topk.NO_ROW] * (k - len(found))
  best = [-score for score, _ in found] + [-np.inf] * (k - len(found))
  return rows, best


@hypothesis.given(scores=SCORES, k=st.integers(1, 70))
def test_best_is_that_of_sorting(scores, k):
  rows, best = topk.best(scores, k)
  assert (rows.tolist(), best.tolist()) == by_sorting(scores, k)
  assert rows.dtype == np.int64 and best.dtype == np.float32


@hypothesis.given(
  scores=SCORES, k=st.integers(1, 70), cuts=st.lists(st.integers(0, 60))
)
def test_the_best_of_parts_are_those_of_the_whole(scores, k, cuts):
  edges = sorted({0, len(scores), *(c for c in cuts if c <= len(scores))})
  spans = list(itertools.pairwise(edges)) or [(0, 0)]
  parts = []
  for start, stop in spans:
    rows, best = topk.best(scores[start:stop], k, start)
    parts.append(topk.Hits(rows[None], best[None]))
  merged = topk.merge(parts, k)
  assert (merged.rows[0].tolist(), merged.scores[0].tolist()) == by_sorting(
    scores, k
  )
  # In any grouping, as a distributed combiner may choose.
  twice = topk.merge([topk.merge(parts[:1], k), *parts[1:]], k)
  np.testing.assert_array_equal(twice.rows, merged.rows)


@pytest.mark.parametrize('k', [2, 5])
def test_parts_narrower_than_k(k):
  part = topk.Hits(np.array([[4, 2]]), np.array([[3.0, 1.0]], np.float32))
  merged = topk.merge([part], k)
  assert merged.rows.tolist() == [[4, 2, *[topk.NO_ROW] * (k - 2)]]
