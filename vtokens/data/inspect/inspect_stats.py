"""Lengths and counts of the examples that training draws."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vtokens.data import mixture, pipeline
from vtokens.data.batching import Shape
from vtokens.data.inspect import inspect_examples


@dataclasses.dataclass(frozen=True)
class ShapeUse:
  """How a static shape is used.

  Attributes:
    batches: of this shape.
    real: tokens in them, padding apart.
    computed: tokens in them, padding included.
  """

  batches: int
  real: int
  computed: int


@dataclasses.dataclass(frozen=True)
class Stats:
  """Of examples as drawn.

  Attributes:
    lengths: of prefix, suffix and answer (with its end) of each, in tokens;
      once for each suffix of an example.
    limits: longest that the config allows, by the same names.
    datasets: examples drawn of each data set.
    shapes: of the batches; empty for evaluation.
    passages: drawn in all.
    cut: passages shortened.
    dropped: passages left out.
    bare: examples that show no passage.
    with_answer: examples that show a passage with an answer.
    with_gold: examples that show a gold passage.
  """

  lengths: Mapping[str, np.ndarray]
  limits: Mapping[str, int]
  datasets: Mapping[str, int]
  shapes: Mapping[Shape, ShapeUse]
  passages: int
  cut: int
  dropped: int
  bare: int
  with_answer: int
  with_gold: int

  @property
  def examples(self) -> int:
    """How many."""
    return sum(self.datasets.values())


def of_plans(
  plans: Iterable[pipeline.PlannedBatch],
  examples: mixture.TrainingMixture,
  shapes: Sequence[Shape],
  limits: Mapping[str, int],
) -> Stats:
  """Statistics of training batches.

  Args:
    plans: of the batches.
    examples: of the run.
    shapes: that batches may have.
    limits: see `Stats`.
  """
  total: collections.Counter[str] = collections.Counter()
  datasets = collections.Counter(dict.fromkeys(examples.names, 0))
  used = {shape: np.zeros(3, int) for shape in shapes}
  rows = []
  for plan in plans:
    computed = len(plan.rows) * sum(plan.shape)
    used[plan.shape] += [1, plan.real_tokens, computed]
    for example in (example for row in plan.rows for example in row):
      draw, member = example.draw, example.member
      answer = examples.answer_len(member, draw.answer)
      for k in plan.active(example):
        rows.append((example.prefix, k + example.text, answer))
      datasets[examples.names[member.dataset]] += 1
      # An answer of another question is none.
      own = [
        examples.origin(passage)
        for passage, kept in zip(draw.passages, example.kept, strict=True)
        if kept and passage.member == member
      ]
      total.update(
        passages=len(draw.passages),
        cut=example.cut,
        dropped=example.dropped,
        bare=int(not any(example.kept)),
        with_answer=int(any(origin.has_answer for origin in own)),
        with_gold=int(any(origin.is_gold for origin in own)),
      )
  return Stats(
    lengths=_columns(rows),
    limits=limits,
    datasets=datasets,
    shapes={shape: ShapeUse(*map(int, row)) for shape, row in used.items()},
    **total,
  )


def of_views(
  views: Iterable[inspect_examples.ExampleView], limits: Mapping[str, int]
) -> Stats:
  """Statistics of what evaluation shows."""
  total: collections.Counter[str] = collections.Counter()
  datasets: collections.Counter[str] = collections.Counter()
  rows = []
  for view in views:
    rows.append((view.prefix_len, view.suffix_len, len(view.targets)))
    datasets[view.dataset] += 1
    shown = [passage for passage in view.passages if passage.kept]
    total.update(
      passages=len(view.passages),
      cut=sum(p.kept < p.body for p in shown),
      dropped=len(view.passages) - len(shown),
      bare=int(not shown),
      with_answer=int(any(p.origin.has_answer for p in shown)),
      with_gold=int(any(p.origin.is_gold for p in shown)),
    )
  return Stats(
    lengths=_columns(rows), limits=limits, datasets=datasets, shapes={}, **total
  )


def _columns(rows: Sequence[tuple[int, int, int]]) -> dict[str, np.ndarray]:
  columns = np.array(rows, int).T
  return dict(zip(('prefix', 'suffix', 'answer'), columns, strict=True))
