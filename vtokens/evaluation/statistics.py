"""Uncertainty of means of questions, and of their differences."""

from collections.abc import Sequence

import numpy as np

# Random numbers drawn at once.
_CHUNK = 1 << 22


def bootstrap_interval(
  groups: Sequence[np.ndarray],
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[float, float]:
  """Percentile bootstrap of the mean of group means.

  Args:
    groups: values of each group's questions.
    resamples: how often questions are drawn again, in each group apart.
    seed: of the draws.
    level: of the interval.

  Returns:
    Lower and upper end.
  """
  rng = np.random.default_rng(seed)
  means = np.zeros(resamples)
  for group in groups:
    rows = max(1, _CHUNK // len(group))
    for start in range(0, resamples, rows):
      part = means[start : start + rows]
      drawn = rng.integers(len(group), size=(len(part), len(group)))
      part += group[drawn].mean(axis=1) / len(groups)
  tail = (1 - level) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return float(low), float(high)


def paired_test(
  a: Sequence[np.ndarray],
  b: Sequence[np.ndarray],
  *,
  permutations: int,
  seed: int,
) -> float:
  """Two-sided approximate randomisation of the mean of group means.

  Args:
    a: values of each group's questions in one condition.
    b: of the same questions in the other.
    permutations: how often each question's two values are swapped by chance.
    seed: of the swaps.

  Returns:
    The p-value, at least 1 / (permutations + 1).
  """
  rng = np.random.default_rng(seed)
  sums = np.zeros(permutations)
  observed = 0.0
  for x, y in zip(a, b, strict=True):
    difference = (x - y) / (len(x) * len(a))
    observed += float(difference.sum())
    rows = max(1, _CHUNK // len(x))
    for start in range(0, permutations, rows):
      part = sums[start : start + rows]
      signs = rng.integers(2, size=(len(part), len(x))) * 2 - 1
      part += signs @ difference
  extreme = int((np.abs(sums) >= abs(observed) - 1e-12).sum())
  return (1 + extreme) / (1 + permutations)
