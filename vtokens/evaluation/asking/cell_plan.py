"""Which cells an evaluation has, and which of them are answered together."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from vtokens.evaluation.asking.cells import Cell
from vtokens.evaluation.asking.evaluated_models import Model
from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.eval_config import UNTOUCHED, Config


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Cells that show the same passages for the same questions.

  Attributes:
    model: which base.
    dataset: whose questions.
    num_passages: shown; 0 for none.
    retriever: whose.
    variants: what is asked in each cell.
  """

  model: str
  dataset: str
  num_passages: int
  retriever: str
  variants: dict[Cell, PromptVariant]


def groups(cfg: Config, model: Model, datasets: Sequence[str]) -> list[Group]:
  """All cells of a base, in groups.

  Args:
    cfg: the axes.
    model: the base and its tables.
    datasets: their names.

  Returns:
    Groups in the order of datasets; in each group, cells in the order of the
    conditions.
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
    Group(model.name, *key, variants=variants)
    for key, variants in found.items()
  ]


def _cells(
  cfg: Config, model: Model, dataset: str, name: str
) -> Iterator[tuple[Cell, PromptVariant]]:
  condition = CONDITIONS[name]
  passages = list(itertools.product(cfg.num_passages, cfg.retrievers))
  for table in model.tables.values() if condition.tokens else [None]:
    numbers = [0] if table is None else cfg.num_active or [len(table.rows)]
    points = itertools.product(numbers, passages)
    main = (numbers[0], cfg.num_passages[0], cfg.retrievers[0])
    for k, (m, retriever) in points:
      shown = condition.passages and m > 0
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
        num_passages=m if shown else 0,
        retriever=retriever if shown else '',
      )
      # The name of a variant is only unique among those asked together.
      parts = [name, cell.table, f'k={k}' if k else '']
      yield (
        cell,
        PromptVariant(' '.join(filter(None, parts)), condition, table, k),
      )
