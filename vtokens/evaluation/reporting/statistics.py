"""How far results would differ with other questions, or by chance alone.

A result is the mean over one dataset, or the unweighted mean of the datasets'
means (macro average). So all functions take groups: the values of each
dataset's questions, in [0, 1] or any other unit. What is drawn are questions;
other training runs or sampling seeds are not covered.
"""

from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

# Elements of a block of draws, so that memory does not grow with them.
_DRAWN_QUESTIONS, _DRAWN_SIGNS = 2**18, 2**20


def macro_mean(groups: Sequence[Float[np.ndarray, 'n']]) -> float:
  """The mean of the groups' means.

  Raises:
    ValueError: there are no groups, or one is empty.
  """
  _check(groups)
  return float(np.mean([group.mean() for group in groups]))


def bootstrap_intervals(
  groups: Sequence[Float[np.ndarray, 'n M']],
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[Float[np.ndarray, 'M'], Float[np.ndarray, 'M']]:
  """Confidence intervals of `macro_mean`, for many results at once.

  Percentile bootstrap (Efron and Tibshirani, 1993, An Introduction to the
  Bootstrap, chapter 13): within each group, questions are drawn with
  replacement, as many as it has. The draws depend on the seed, the number of
  resamples and the sizes of the groups alone, so results on the same questions
  see the same resamples.

  Args:
    groups: for each dataset the values of its questions, a column for each
      result; the numbers of questions may differ.
    resamples: how often to draw.
    seed: of the draws.
    level: of confidence, between 0 and 1.

  Returns:
    Lower and upper ends, in the unit of the values.

  Raises:
    ValueError: there are no groups, or one is empty.
  """
  _check(groups)

  def means(
    *drawn: Int[np.ndarray, 'B n'], axis: int
  ) -> Float[np.ndarray, 'M B']:
    del axis  # Always the last one.
    parts = [
      # How often each question was drawn: one product serves all results.
      _count(numbers, len(group)) @ group / numbers.shape[1]
      for numbers, group in zip(drawn, groups, strict=True)
    ]
    found: np.ndarray = np.mean(parts, axis=0)
    return found.T

  interval = scipy.stats.bootstrap(
    # A group is drawn by the numbers of its questions. One question is twice
    # the same, since scipy wants two.
    [np.arange(max(2, len(group))) % len(group) for group in groups],
    means,
    n_resamples=resamples,
    batch=max(1, _DRAWN_QUESTIONS // max(map(len, groups))),
    vectorized=True,
    confidence_level=level,
    method='percentile',
    rng=np.random.default_rng(seed),
  ).confidence_interval
  return interval.low, interval.high


def paired_test(
  a: Sequence[Float[np.ndarray, 'n']],
  b: Sequence[Float[np.ndarray, 'n']],
  *,
  permutations: int,
  seed: int,
) -> float:
  """Two-sided approximate randomisation test of two conditions.

  Noreen, 1989, Computer-Intensive Methods for Testing Hypotheses, chapter 2:
  if it made no difference which condition is which, each question's difference
  would be as likely with the other sign. p = (c + 1) / (permutations + 1),
  where c random assignments of signs give an absolute difference of the macro
  means at least as large as the one found.

  Args:
    a: values of each dataset's questions.
    b: the same questions' values in the other condition.
    permutations: how many assignments of signs are drawn.
    seed: of the draws.

  Returns:
    p, at least 1 / (permutations + 1), at most 1; not corrected for the number
    of tests.

  Raises:
    ValueError: there are no groups, one is empty, or a and b differ in shape.
  """
  differences = _differences(a, b)
  # What each question adds to the difference of the macro means.
  parts = np.concatenate([d / (len(d) * len(differences)) for d in differences])
  # A sign changes nothing where there is no difference.
  parts = parts[parts != 0]
  if not len(parts):
    return 1.0
  rng = np.random.default_rng(seed)

  def with_random_signs(size: tuple[int, int]) -> Float[np.ndarray, 'B n']:
    bits = rng.integers(256, size=(size[0], -(-size[1] // 8)), dtype=np.uint8)
    flipped = np.unpackbits(bits, axis=1, count=size[1]).astype(bool)
    signed: np.ndarray = np.where(flipped, -parts, parts)
    return signed

  return float(
    scipy.stats.monte_carlo_test(
      parts,
      with_random_signs,
      lambda signed, axis: np.abs(signed.sum(axis)),
      vectorized=True,
      n_resamples=permutations,
      batch=max(1, _DRAWN_SIGNS // len(parts)),
      alternative='greater',
    ).pvalue
  )


def _count(drawn: Int[np.ndarray, 'B m'], n: int) -> Float[np.ndarray, 'B n']:
  """How often each number from 0 to n - 1 is in each row."""
  rows = len(drawn)
  places = drawn + n * np.arange(rows)[:, None]
  counts = np.bincount(places.ravel(), minlength=rows * n)
  return counts.reshape(rows, n).astype(np.float64)


def _differences(
  a: Sequence[np.ndarray], b: Sequence[np.ndarray]
) -> list[np.ndarray]:
  sizes = [group.shape for group in a], [group.shape for group in b]
  if sizes[0] != sizes[1]:
    raise ValueError(
      f'groups of shapes {sizes[0]} and {sizes[1]}: expected the same questions'
    )
  _check(a)
  return [x - y for x, y in zip(a, b, strict=True)]


def _check(groups: Sequence[np.ndarray]) -> None:
  if not groups:
    raise ValueError('no groups: expected the values of at least one dataset')
  if not all(len(group) for group in groups):
    raise ValueError(
      f'groups of {[len(group) for group in groups]} questions: the mean over '
      'no question is undefined'
    )
