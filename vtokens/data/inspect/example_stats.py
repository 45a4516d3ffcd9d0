"""Lengths and counts of the examples that a run sees."""

import dataclasses
from collections import Counter
from dataclasses import field

import numpy as np

from vtokens.data.batching import Shape
from vtokens.data.inspect import example_pieces
from vtokens.data.mixture import TrainingMixture
from vtokens.data.planned import PlannedBatch


@dataclasses.dataclass
class Stats:
  """Lengths and counts of examples.

  Attributes:
    limits: the longest prefix, suffix and answer that the config allows.
    rows: tokens of prefix, suffix and answer (with eos) of each suffix.
    datasets: number of examples by dataset.
    totals: examples by `with_answer`, `with_gold` (they show such a passage),
      `bare` (they show none) and `refused` (they ask for the refusal);
      passages by `passages`, `cut` and `dropped`.
    shapes: for each static shape an int array of shape [3]: batches, real
      tokens, and computed tokens (padding included). Empty for evaluation.
  """

  limits: dict[str, int]
  rows: list[tuple[int, int, int]] = field(default_factory=list)
  datasets: Counter[str] = field(default_factory=Counter)
  totals: Counter[str] = field(default_factory=Counter)
  shapes: dict[Shape, np.ndarray] = field(default_factory=dict)

  @property
  def examples(self) -> int:
    """Number of examples."""
    return self.datasets.total()

  @property
  def lengths(self) -> dict[str, np.ndarray]:
    """Lengths by name; without answers that are to be generated."""
    columns = np.array(self.rows, int).reshape(-1, len(self.limits)).T
    named = zip(self.limits, columns, strict=True)
    return {name: lengths for name, lengths in named if lengths.any()}

  def add(self, example: example_pieces.ExampleView) -> None:
    """Counts an example."""
    self.rows += example.lengths
    self.datasets[example.dataset] += 1
    shown = [passage for passage in example.passages if passage.kept]
    # An answer to another question does not count.
    own = [p.origin for p in shown if not p.distractor_of]
    self.totals.update(
      passages=len(example.passages),
      cut=sum(p.kept < p.lens[0] for p in shown),
      dropped=len(example.passages) - len(shown),
      bare=int(not shown),
      refused=int(example.refused),
      with_answer=int(any(origin.has_answer for origin in own)),
      with_gold=int(any(origin.is_gold for origin in own)),
    )

  def add_batch(self, planned: PlannedBatch, mixture: TrainingMixture) -> None:
    """Counts a training batch and its examples."""
    computed = len(planned.rows) * sum(planned.shape)
    self.shapes[planned.shape] += [1, planned.real_tokens, computed]
    for row in planned.rows:
      for example in row:
        active = planned.active(example)
        self.add(example_pieces.of_plan(example, active, mixture))
