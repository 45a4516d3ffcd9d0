"""A teacher's side of training batches, for distillation.

`config.Distill` says what the teacher sees. A teacher other than the last draw
has examples of its own, one for each example of the student: other passages,
other virtual tokens or words in their place, the same question and answer.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vtokens.data.assemble import Example
from vtokens.data.prompt_encoder import Ids, as_ids


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What a teacher sees.

  Attributes:
    gold: whether it sees only gold passages; otherwise all that are shown.
    num_active: number of its virtual tokens.
    text: ids that it has instead, in the same place.
    in_suffix: whether its virtual tokens are tokens of the suffix.
  """

  gold: bool
  num_active: int
  text: Ids = dataclasses.field(default_factory=lambda: as_ids([]))
  in_suffix: bool = True

  @property
  def num_tokens(self) -> int:
    """Length of what stands in the place of the virtual tokens."""
    return self.num_active + len(self.text)

  @property
  def num_inputs(self) -> int:
    """Number of these tokens that are in the suffix."""
    return self.in_suffix * self.num_active + len(self.text)

  def example(self, example: Example) -> Example:
    """The example with the teacher's tokens."""
    return dataclasses.replace(
      example,
      before=np.concatenate([example.before, self.text]),
      num_active=self.num_active,
      in_suffix=self.in_suffix,
    )


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


def by_teacher(
  rows: Sequence[Sequence[Sequence[Example]]],
  teachers: Sequence[Sequence[Example | None]],
  num_targets: int,
) -> Int[np.ndarray, 'R A']:
  """Numbers of the teacher's targets, which teach all draws of an example.

  Args:
    rows: see `by_last_draw`.
    teachers: the teacher's example for each prefix of each row, if any.
    num_targets: largest number of targets of a row.

  Returns:
    `Batch.teacher_index`: int32 array of shape [R, A].
  """
  index = np.full((len(rows), num_targets), -1, np.int32)
  for r, (row, taught_by) in enumerate(zip(rows, teachers, strict=True)):
    start = first = 0
    for examples, teacher in zip(row, taught_by, strict=True):
      size, draws = len(examples[0].targets), len(examples)
      stop = start + draws * size
      if teacher is not None:
        index[r, start:stop] = np.tile(np.arange(first, first + size), draws)
        first += size
      start = stop
  return index
