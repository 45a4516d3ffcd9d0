"""The best k of many scores, exactly and in a fixed order.

Higher scores come first; of equal scores the lower row. So the best k of a
corpus are the best k among the best k of its parts.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

NO_ROW = -1


@dataclasses.dataclass(frozen=True)
class Hits:
  """The passages found for B questions.

  Attributes:
    rows: rows of the corpus, best first, int64 array of shape [B, k]; `NO_ROW`
      after the last one found.
    scores: float32 array of shape [B, k]; -inf at `NO_ROW`.
  """

  rows: np.ndarray
  scores: np.ndarray


def best(
  scores: np.ndarray, k: int, first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """The best k nonzero scores of a question.

  Args:
    scores: scores of the rows from `first_row` on, float32 array of shape [N].
    k: number of scores.
    first_row: row of the first score.

  Returns:
    Rows and scores as in a row of `Hits`: int64 and float32 arrays of shape
    [k].
  """
  index = np.flatnonzero(scores)
  found = scores[index]
  if len(index) > k:
    # All scores above the k-th best, then the first ones equal to it.
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
  """Merges the hits of several parts of a corpus.

  Args:
    parts: hits for the same questions; at least one; their k may differ.
    k: number of hits to keep for each question.
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
