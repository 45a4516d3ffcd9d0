"""Groups examples into rows, batches and static shapes by their lengths.

examples --form_rows: several to a row, rows of nearly equal length--> rows
rows --group_rows: rows of similar length together--> batches
batch --smallest shape that holds it--> compiled program
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# Row lengths are multiples of these.
_PREFIX_STEP, _SUFFIX_STEP = 32, 8
# Shapes exceed the longest row of the sample by these factors.
_PREFIX_MARGIN, _SUFFIX_MARGIN = 1.02, 1.1

Shape = tuple[int, int]


def form_rows(
  lengths: Int[np.ndarray, 'N'], per_row: int
) -> Int[np.ndarray, 'R per_row']:
  """Deals examples into rows of nearly equal total length.

  Takes the longest example first, and gives each to the shortest row that is
  not full: Graham's LPT rule (1969, doi 10.1137/0117039) for rows of equally
  many examples.

  Args:
    lengths: length of each example's prefix or suffix, whichever varies more;
      N is a multiple of `per_row`.
    per_row: number of examples in a row.

  Returns:
    Indices of the examples of each row.
  """
  order = np.argsort(-lengths, kind='stable')
  rows: list[list[int]] = [[] for _ in range(len(lengths) // per_row)]
  heap = [(0, row) for row in range(len(rows))]
  for i in order.tolist():
    total, row = heapq.heappop(heap)
    rows[row].append(i)
    if len(rows[row]) < per_row:
      heapq.heappush(heap, (total + int(lengths[i]), row))
  return np.array(rows, np.int64)


def group_rows(
  prefix: Int[np.ndarray, 'R'],
  suffix: Int[np.ndarray, 'R'],
  shapes: Sequence[Shape],
  batch_rows: int,
  *,
  by_suffix: bool = False,
) -> list[tuple[np.ndarray, Shape]]:
  """Puts rows of similar length into the same batch.

  Args:
    prefix: total length of each row's prefixes.
    suffix: total length of each row's suffixes; some shape holds both.
    shapes: shapes that a batch may have.
    batch_rows: number of rows in a batch; R is a multiple of it.
    by_suffix: whether the suffixes vary more in length than the prefixes.

  Returns:
    For each batch, the indices of its rows and the first shape that holds
    them.
  """
  first = np.argmax(_fits(prefix, suffix, shapes), axis=1)
  # Sort by shape first: one row with a long suffix must not give its large
  # shape to rows with short prefixes.
  order = np.lexsort((suffix if by_suffix else prefix, first))
  batches = []
  for start in range(0, len(order), batch_rows):
    rows = order[start : start + batch_rows]
    longest = (prefix[rows].max(keepdims=True), suffix[rows].max(keepdims=True))
    fits = _fits(*longest, shapes)[0]
    batches.append((rows, shapes[int(np.argmax(fits))]))
  return batches


def choose_shapes(
  prefix: Int[np.ndarray, 'R'],
  suffix: Int[np.ndarray, 'R'],
  most: Shape,
  num_shapes: int,
) -> tuple[Shape, ...]:
  """Chooses shapes that leave little padding on rows like those of a sample.

  Greedy: starts with a shape that holds all rows of the sample, adds the shape
  that saves most padding again and again, and at the end reconsiders each.

  Args:
    prefix: prefix length of each row of the sample.
    suffix: suffix length of each row of the sample.
    most: shape that no row can exceed; always the last shape.
    num_shapes: the most shapes to choose.

  Returns:
    The shapes, smallest first.
  """
  top = (
    _round_up(int(prefix.max() * _PREFIX_MARGIN), _PREFIX_STEP, most[0]),
    _round_up(int(suffix.max() * _SUFFIX_MARGIN), _SUFFIX_STEP, most[1]),
  )
  candidates = sorted(
    {top}
    | {
      (p, s)
      for p in _quantiles(prefix, 24, _PREFIX_STEP, top[0])
      for s in _quantiles(suffix, 12, _SUFFIX_STEP, top[1])
    }
  )
  fits = _fits(prefix, suffix, candidates)
  sizes = np.array([p + s for p, s in candidates])
  costs = np.where(fits, sizes, np.iinfo(np.int64).max // len(prefix))
  # `most` is one of the shapes, and so is `top` if it is smaller.
  chosen = [candidates.index(top)]
  free = num_shapes - 1 - (top != most)

  def best_beside(others: Sequence[int]) -> int:
    least = costs[:, others].min(axis=1)
    return int(np.minimum(least[:, None], costs).sum(axis=0).argmin())

  for _ in range(free):
    chosen.append(best_beside(chosen))
  for i in range(1, len(chosen)):
    chosen[i] = best_beside([*chosen[:i], *chosen[i + 1 :]])
  if num_shapes == 1:
    return (most,)
  shapes = {candidates[i] for i in chosen} - {most}
  return (*sorted(shapes, key=sum), most)


def _fits(
  prefix: np.ndarray, suffix: np.ndarray, shapes: Sequence[Shape]
) -> np.ndarray:
  """Whether row i fits shape j, bool array of shape [R, shapes]."""
  limits = np.array(shapes)
  return (prefix[:, None] <= limits[:, 0]) & (suffix[:, None] <= limits[:, 1])


def _quantiles(
  lengths: np.ndarray, count: int, step: int, most: int
) -> set[int]:
  marks = np.quantile(lengths, np.linspace(0, 1, count + 1)[1:])
  return {_round_up(int(mark), step, most) for mark in marks}


def _round_up(length: int, step: int, most: int) -> int:
  # At least one slot, of padding, if all lengths are 0.
  return max(1, min(-(-length // step) * step, most))
