"""Which cells an evaluation has, and which of them are answered together."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from vtokens.evaluation.asking.cells import Cell, MainValues
from vtokens.evaluation.asking.evaluated_models import Model
from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.eval_config import UNTOUCHED, Config


@dataclasses.dataclass(frozen=True, eq=False)
class CellGroup:
  """Cells that show the same passages for the same questions.

  Attributes:
    model: name of the base.
    dataset: name of the dataset.
    num_passages: passages shown; 0 for none.
    retriever: whose passages.
    variants: the prompt variant of each cell.
  """

  model: str
  dataset: str
  num_passages: int
  retriever: str
  variants: dict[Cell, PromptVariant]


def groups(
  cfg: Config, model: Model, datasets: Sequence[str]
) -> list[CellGroup]:
  """All cells of a base, in groups.

  Args:
    cfg: settings of the evaluation, among them the axes.
    model: the base and its tables.
    datasets: names of the datasets.

  Returns:
    Groups in the order of the datasets; in each group, cells in the order of
    the conditions.
  """
  found: dict[tuple[str, int, str], dict[Cell, PromptVariant]] = {}
  for dataset in datasets:
    for name in cfg.conditions:
      if name == UNTOUCHED:
        continue
      for cell, variant in _cells(cfg, model, dataset, name):
        key = (dataset, cell.num_passages, cell.retriever)
        found.setdefault(key, {})[cell] = variant
  return [
    CellGroup(model.name, *key, variants=variants)
    for key, variants in found.items()
  ]


def main_values(cfg: Config, models: Sequence[Model]) -> MainValues:
  """The first value of each axis.

  Args:
    cfg: settings of the evaluation.
    models: all bases, with the tables trained on each.
  """
  return MainValues(
    num_active={
      table.name: cfg.num_active[0] if cfg.num_active else len(table)
      for model in models
      for table in model.tables.values()
    },
    num_passages=cfg.num_passages[0],
    retriever=cfg.retrievers[0],
  )


def _cells(
  cfg: Config, model: Model, dataset: str, name: str
) -> Iterator[tuple[Cell, PromptVariant]]:
  condition = CONDITIONS[name]
  passages = list(itertools.product(cfg.num_passages, cfg.retrievers))
  for table in model.tables.values() if condition.tokens else [None]:
    numbers = [0] if table is None else cfg.num_active or [len(table)]
    points = itertools.product(numbers, passages)
    main = (numbers[0], cfg.num_passages[0], cfg.retrievers[0])
    for k, (m, retriever) in points:
      point = (k, m, retriever)
      moved = sum(a != b for a, b in zip(point, main, strict=True))
      if moved > 1 and not cfg.product:
        continue
      cell = Cell(
        dataset=dataset,
        model=model.name,
        condition=name,
        table='' if table is None else table.name,
        num_active=k,
        num_passages=m,
        retriever=retriever,
      ).only_what_applies()
      # The name of a variant is unique among variants asked together, only.
      parts = [name, cell.table, f'k={k}' if k else '']
      yield (
        cell,
        PromptVariant(' '.join(filter(None, parts)), condition, table, k),
      )
