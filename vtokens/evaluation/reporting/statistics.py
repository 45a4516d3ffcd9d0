"""How far results would differ with other questions, or by chance alone.

A result is the mean over one dataset, or the unweighted mean of the means over
several (macro average), so everything here takes groups: the values of each
dataset's questions, in [0, 1] or any other unit. Questions are what is drawn;
that another training run or sampling seed would give other answers is not
covered.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Elements of a block of draws: 8 MiB of f64, whatever the size of a dataset.
_BLOCK = 2**20


def macro_mean(groups: Sequence[Float[np.ndarray, 'n']]) -> float:
  """The mean of the groups' means.

  Raises:
    ValueError: there are no groups, or one is empty.
  """
  _check(groups)
  return float(np.mean([group.mean() for group in groups]))


def bootstrap_interval(
  groups: Sequence[Float[np.ndarray, 'n']],
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[float, float]:
  """A confidence interval of `macro_mean`; see `bootstrap_intervals`."""
  low, high = bootstrap_intervals(
    [group[:, None] for group in groups],
    resamples=resamples,
    seed=seed,
    level=level,
  )
  return float(low[0]), float(high[0])


def bootstrap_intervals(
  groups: Sequence[Float[np.ndarray, 'n M']],
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[Float[np.ndarray, 'M'], Float[np.ndarray, 'M']]:
  """Confidence intervals of `macro_mean`, for many results at once.

  Percentile bootstrap (Efron and Tibshirani, 1993, An Introduction to the
  Bootstrap, chapter 13): questions are drawn with replacement, as many as
  there are in a group and within each group. The draws depend on the seed,
  the number of resamples, and the place and size of a group alone, so results
  on the same questions see the same resamples. Drawing is what takes time: M
  results together cost little more than one.

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
  means = np.zeros((resamples, groups[0].shape[1]))
  for place, group in enumerate(groups):
    means += _resampled_sums(group, resamples, [seed, place]) / (
      len(group) * len(groups)
    )
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return low, high


def bootstrap_difference(
  a: Sequence[Float[np.ndarray, 'n']],
  b: Sequence[Float[np.ndarray, 'n']],
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[float, float, float]:
  """How much better a is than b on the same questions, with its interval.

  Args:
    a: values of each dataset's questions.
    b: the same questions' values in the other condition.
    resamples: see `bootstrap_intervals`.
    seed: likewise.
    level: likewise.

  Returns:
    The difference of the macro means, and the lower and upper end of its
    interval.

  Raises:
    ValueError: there are no groups, one is empty, or a and b differ in shape.
  """
  differences = _differences(a, b)
  low, high = bootstrap_interval(
    differences, resamples=resamples, seed=seed, level=level
  )
  return macro_mean(differences), low, high


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
  c being how many random assignments of signs give an absolute difference of
  the macro means at least as large as the one found.

  Args:
    a: values of each dataset's questions.
    b: the same questions' values in the other condition.
    permutations: how many assignments of signs are drawn.
    seed: of the draws.

  Returns:
    p, at least 1 / (permutations + 1), at most 1; not corrected for how many
    pairs of conditions are tested.

  Raises:
    ValueError: there are no groups, one is empty, or a and b differ in shape.
  """
  differences = _differences(a, b)
  # What each question adds to the difference of the macro means.
  parts = np.concatenate([d / (len(d) * len(differences)) for d in differences])
  # A sign changes nothing where there is no difference.
  parts = parts[parts != 0]
  # Sums of the same numbers in another order may differ in the last digits.
  found = abs(parts.sum()) * (1 - 1e-9)
  rng = np.random.default_rng(seed)
  count = 0
  for rows in _blocks(permutations, len(parts)):
    bits = rng.integers(256, size=(rows, -(-len(parts) // 8)), dtype=np.uint8)
    flipped = np.unpackbits(bits, axis=1, count=len(parts))
    drawn = parts.sum() - 2 * (flipped @ parts)
    count += int((np.abs(drawn) >= found).sum())
  return (count + 1) / (permutations + 1)


def _resampled_sums(
  group: Float[np.ndarray, 'n M'], resamples: int, entropy: list[int]
) -> Float[np.ndarray, 'resamples M']:
  """Sums over the questions of each resample."""
  rng = np.random.default_rng(entropy)
  n = len(group)
  sums = []
  for rows in _blocks(resamples, n):
    # How often each question was drawn: one matrix product then serves all
    # columns.
    drawn = np.empty((rows, n))
    for row in drawn:
      row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    sums.append(drawn @ group)
  return np.concatenate(sums)


def _blocks(draws: int, n: int) -> list[int]:
  """How many draws of n elements to make at a time, so that memory is bound."""
  rows = max(1, _BLOCK // max(1, n))
  return [min(rows, draws - start) for start in range(0, draws, rows)]


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
