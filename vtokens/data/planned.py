"""Lengths of training examples and batches, before their ids are read."""

import dataclasses

from vtokens.data import batching
from vtokens.data.mixture import ExampleDraw, Member


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
  """The lengths of an example, before its ids are read.

  Attributes:
    member: where it comes from.
    draw: the random choices about it; with the answer that is the target.
    prefix: length of its prefix.
    text: length of a suffix without its virtual tokens.
    targets: number of tokens of its answer and eos.
    kept: tokens kept of each drawn passage's body; 0 if it is dropped.
    cut: number of passages shortened.
    teacher: of the teacher's example, if there is one: length of its prefix and
      of its suffix, and number of virtual tokens that are in neither.
    in_suffix: whether virtual tokens are tokens of the suffix.
    source: number of the passage that the answer cites; 0 for no citation.
  """

  member: Member
  draw: ExampleDraw
  prefix: int
  text: int
  targets: int
  kept: tuple[int, ...]
  cut: int
  in_suffix: bool
  teacher: tuple[int, int, int] | None = None
  source: int = 0

  @property
  def suffix(self) -> int:
    """Total length of its suffixes with the drawn virtual tokens."""
    return sum(self.text + self.in_suffix * k for k in self.draw.num_active)

  @property
  def dropped(self) -> int:
    """Number of passages left out because the prefix was full."""
    return sum(not n for n in self.kept)


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedBatch:
  """The lengths of a batch, before its ids are read.

  Attributes:
    rows: examples of each row.
    shape: prefix and suffix length of a row.
    num_active: number of virtual tokens (k) of each suffix, if it is drawn
      once for all examples; else None.
    teacher_shape: prefix and suffix length of a teacher's row; None without a
      pass of its own.
  """

  rows: list[list[Planned]]
  shape: batching.Shape
  num_active: tuple[int, ...] | None
  teacher_shape: batching.Shape | None = None

  def active(self, example: Planned) -> tuple[int, ...]:
    """Number of virtual tokens of each suffix of an example."""
    return self.num_active or example.draw.num_active

  @property
  def lengths(self) -> tuple[tuple[int, int, int, int], ...]:
    """Lengths of each suffix; see `flops.train_flops`."""
    return tuple(
      (
        0 if number else e.prefix,
        # The suffix attends to virtual tokens that are not in it.
        e.prefix + (not e.in_suffix) * k,
        e.text + e.in_suffix * k,
        e.targets,
      )
      for row in self.rows
      for e in row
      for number, k in enumerate(self.active(e))
    )

  @property
  def teacher_lengths(self) -> tuple[tuple[int, int, int, int], ...]:
    """Lengths of each suffix that a teacher's own pass has."""
    if self.teacher_shape is None:
      return ()
    # Otherwise the prefix is the student's, which is encoded already.
    encodes = self.teacher_shape[0] > 0
    return tuple(
      (prefix if encodes else 0, prefix + outside, suffix, e.targets)
      for row in self.rows
      for e in row
      if e.teacher is not None
      for prefix, suffix, outside in [e.teacher]
    )

  @property
  def real_tokens(self) -> int:
    """Number of tokens without padding."""
    return sum(
      encoded + suffix
      for encoded, _, suffix, _ in (*self.lengths, *self.teacher_lengths)
    )
