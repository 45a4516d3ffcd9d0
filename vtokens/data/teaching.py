"""Which target teaches which, for distillation; see `config.Distill`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vtokens.data.assemble import Example


def by_last_draw(
  rows: Sequence[Sequence[Sequence[Example]]], num_targets: int
) -> Int[np.ndarray, 'R A']:
  """Numbers of the targets of the last draw, which teach the others.

  Args:
    rows: see `pipeline.collate`; all examples of a prefix have one answer.
    num_targets: largest number of targets of a row.

  Returns:
    `Batch.teacher_index`: int32 array of shape [R, A].
  """
  index = np.full((len(rows), num_targets), -1, np.int32)
  for r, row in enumerate(rows):
    start = 0
    for examples in row:
      size, others = len(examples[0].targets), len(examples) - 1
      last = start + others * size
      index[r, start:last] = np.tile(np.arange(last, last + size), others)
      start = last + size
  return index
