"""Rows of equal length, batches of similar rows, shapes with little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtokens.data import batching


@given(
  st.integers(1, 5),
  st.lists(st.integers(1, 2000), min_size=1, max_size=60),
)
def test_every_example_is_in_one_row(per_row, lengths):
  lengths = np.array(lengths * per_row)
  rows = batching.form_rows(lengths, per_row)
  assert rows.shape == (len(lengths) // per_row, per_row)
  assert sorted(rows.ravel()) == list(range(len(lengths)))


def test_rows_are_of_nearly_equal_length():
  rng = np.random.default_rng(0)
  lengths = rng.integers(50, 1000, 512)
  for per_row, spread in ((2, 0.25), (4, 0.03), (8, 0.01)):
    totals = lengths[batching.form_rows(lengths, per_row)].sum(axis=1)
    assert np.ptp(totals) < spread * totals.mean()


def test_one_to_a_row_is_the_examples_themselves():
  rows = batching.form_rows(np.array([3, 9, 4]), 1)
  assert sorted(rows.ravel().tolist()) == [0, 1, 2]


def test_batches_hold_rows_of_similar_length_and_fit():
  rng = np.random.default_rng(1)
  prefix, suffix = rng.integers(1, 100, 64), rng.integers(1, 50, 64)
  shapes = ((30, 50), (60, 25), (100, 50))
  batches = batching.group_rows(prefix, suffix, shapes, 8)
  assert sorted(i for rows, _ in batches for i in rows) == list(range(64))
  for rows, shape in batches:
    longest = prefix[rows].max(), suffix[rows].max()
    fitting = [s for s in shapes if longest[0] <= s[0] and longest[1] <= s[1]]
    assert shape == fitting[0]
  computed = sum(8 * sum(shape) for _, shape in batches)
  in_order = sum(
    8 * sum(next(s for s in shapes if p <= s[0] and q <= s[1]))
    for p, q in zip(
      prefix.reshape(8, 8).max(axis=1),
      suffix.reshape(8, 8).max(axis=1),
      strict=True,
    )
  )
  assert computed < 0.9 * in_order


def test_where_suffixes_differ_rows_are_sorted_by_them():
  suffix = np.random.default_rng(3).integers(1, 100, 64)
  shapes = ((5, 50), (5, 80), (5, 100))
  batches = batching.group_rows(
    np.full(64, 5), suffix, shapes, 8, by_suffix=True
  )
  order = [suffix[i] for rows, _ in batches for i in rows]
  assert order == sorted(suffix.tolist())
  for rows, shape in batches:
    assert shape == next(s for s in shapes if suffix[rows].max() <= s[1])


@given(
  st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 90)), min_size=1, max_size=50
  ),
  st.integers(1, 7),
)
def test_there_is_a_shape_for_every_row(rows, num_shapes):
  prefix, suffix = np.array(rows).T
  shapes = batching.choose_shapes(prefix, suffix, (400, 90), num_shapes)
  assert 1 <= len(shapes) <= num_shapes
  assert len(set(shapes)) == len(shapes)
  assert shapes[-1] == (400, 90)
  for p, s in shapes:
    assert 0 < p <= 400 and 0 < s <= 90


def padded(prefix, suffix, shapes):
  return sum(
    min(p + s for p, s in shapes if a <= p and b <= s)
    for a, b in zip(prefix.tolist(), suffix.tolist(), strict=True)
  )


def test_chosen_shapes_are_close_to_the_best():
  """Against all choices of two shapes beside the largest."""
  rng = np.random.default_rng(2)
  prefix = np.concatenate(
    [rng.integers(30, 60, 50), rng.integers(150, 190, 50)]
  )
  suffix = rng.integers(8, 60, 100)
  most = (192, 64)
  chosen = batching.choose_shapes(prefix, suffix, most, 3)
  grid = [(p, s) for p in range(32, 193, 32) for s in range(8, 65, 8)]
  best = min(
    padded(prefix, suffix, [a, b, most])
    for a, b in itertools.combinations(grid, 2)
  )
  assert padded(prefix, suffix, chosen) <= 1.03 * best
  more = batching.choose_shapes(prefix, suffix, most, 6)
  assert padded(prefix, suffix, more) < padded(prefix, suffix, chosen)


@pytest.mark.parametrize('num_shapes', [1, 2])
def test_rows_beyond_the_sample_still_have_a_shape(num_shapes):
  shapes = batching.choose_shapes(
    np.array([10, 20]), np.array([5, 6]), (1000, 100), num_shapes
  )
  assert shapes[-1] == (1000, 100)
  assert len(shapes) == num_shapes
