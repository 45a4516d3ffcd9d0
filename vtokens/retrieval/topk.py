"""The best k of many scores, exactly and in one order.

Higher scores come first, and of equal scores the lower row: so the best k of
a corpus are the best k of the best k of its parts.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

NO_ROW = -1


@dataclasses.dataclass(frozen=True)
class Hits:
  """What was found for B questions.

  Attributes:
    rows: int64 [B, k], rows of the corpus, best first; `NO_ROW` after the
      last.
    scores: float32 [B, k]; -inf where there is no row.
  """

  rows: np.ndarray
  scores: np.ndarray


def best(
  scores: np.ndarray, k: int, first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """The best k of the scores of one question that are not 0.

  Args:
    scores: float32 [N], of the rows from `first_row` on.
    k: how many.
    first_row: what is added to the index of a score.

  Returns:
    int64 and float32 [k], as a row of `Hits`.
  """
  index = np.flatnonzero(scores)
  found = scores[index]
  if len(index) > k:
    # All above the k-th best score, and of those equal to it the first.
    limit = np.partition(found, len(found) - k)[len(found) - k]
    above = np.flatnonzero(found > limit)
    equal = np.flatnonzero(found == limit)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    index, found = index[chosen], found[chosen]
  order = np.lexsort((index, -found))
  rows = np.full(k, NO_ROW, np.int64)
  top = np.full(k, -np.inf, np.float32)
  rows[: len(order)] = index[order] + first_row
  top[: len(order)] = found[order]
  return rows, top


def merge(parts: Iterable[Hits], k: int) -> Hits:
  """The best k of what was found in several parts of a corpus.

  Args:
    parts: at least one, for the same questions; widths may differ.
    k: how many to keep.
  """
  parts = list(parts)
  rows = np.concatenate([part.rows for part in parts], axis=1)
  scores = np.concatenate([part.scores for part in parts], axis=1)
  if rows.shape[1] < k:
    missing = ((0, 0), (0, k - rows.shape[1]))
    rows = np.pad(rows, missing, constant_values=NO_ROW)
    scores = np.pad(scores, missing, constant_values=-np.inf)
  order = np.lexsort((rows, -scores), axis=1)[:, :k]
  return Hits(
    rows=np.take_along_axis(rows, order, axis=1),
    scores=np.take_along_axis(scores, order, axis=1),
  )
