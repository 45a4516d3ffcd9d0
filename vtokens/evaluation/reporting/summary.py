"""All that a report says of results, as one JSON value."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vtokens.evaluation.asking.cells import Answer, Cell, CellResult, Results
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.reporting import statistics

LEVEL = 0.95
# What ends an answer; see cells.Answer.
STOPS = ('end', 'newline', 'length')
# The metrics that conditions are compared in.
COMPARED = ('em', 'f1')
_COORDINATES = tuple(field.name for field in dataclasses.fields(Cell))


@dataclasses.dataclass(frozen=True)
class Resampling:
  """How uncertainty is estimated.

  Attributes:
    resamples: of the bootstrap, for each interval.
    permutations: of each paired test.
    seed: of both.
  """

  resamples: int
  permutations: int
  seed: int


def summarize(
  results: Results,
  *,
  resamples: int,
  permutations: int,
  seed: int,
  reference: str = 'prompt',
) -> dict[str, Any]:
  """Means, intervals, averages over datasets and paired tests.

  A cell without its dataset is called a column. A column's average gives each
  dataset the same weight, as the paper's does, and is there only if the column
  has a cell for every dataset. A column is a main one if its k, its number of
  passages and its retriever are those at which other axes are varied, as far
  as they apply.

  Args:
    results: all that was found.
    resamples: of the bootstrap, for each interval.
    permutations: of each paired test.
    seed: of both.
    reference: the condition that all others are compared with, by model.

  Returns:
    A JSON value; nothing is rounded. Metrics, and the shares in `stop`, are in
    percent, lengths in tokens.

    `datasets`: questions by dataset. `conditions`: text by name, in order of
    the report. `main`: `num_active` by table, `num_passages`, `retriever`.
    `reference` and `statistics`: as given.

    `columns`: objects with the coordinates of `Cell` but for the dataset, and
    `main` (whether it is a main one), in order of the report. `cells`: objects
    with all coordinates, `main`, `n`, `metrics` (by name, `mean` and
    `interval`), `mean_tokens` and `stop`. `averages`: the same without
    `dataset`; `n` is the number of all questions.

    `comparisons`: objects with `dataset` ('' for the average), `a` and `b`
    (columns), `n` and `metrics` (by name, `difference` a - b, `interval`,
    `p_value`). Compared are each main column with the reference of its model,
    and each that uses virtual tokens with every other.
  """
  columns = _columns(results)
  mains = [column for column in columns if is_main(column, results)]
  datasets = list(results.records)
  complete = [
    column for column, found in columns.items() if len(found) == len(datasets)
  ]
  estimates = _Estimates(Resampling(resamples, permutations, seed))
  content = {
    'datasets': {name: len(rows) for name, rows in results.records.items()},
    'conditions': {
      column.condition: CONDITIONS[column.condition].text for column in columns
    },
    'main': {
      'num_active': dict(results.num_active),
      'num_passages': results.num_passages,
      'retriever': results.retriever,
    },
    'reference': reference,
    'statistics': {'level': LEVEL, **dataclasses.asdict(estimates.sampling)},
    'columns': [
      _coordinates(column) | {'main': column in mains} for column in columns
    ],
    'cells': [
      _coordinates(result.cell)
      | {'main': column in mains}
      | _scores({dataset: result}, estimates)
      for dataset in datasets
      for column, found in columns.items()
      if (result := found.get(dataset))
    ],
    'averages': [
      _coordinates(column)
      | {'main': column in mains}
      | _scores(columns[column], estimates)
      for column in complete
    ],
    'comparisons': [
      comparison
      for a, b in _pairs(mains, reference)
      for comparison in _compare(
        columns[a], columns[b], a, b, datasets, estimates
      )
    ],
  }
  estimates.fill_intervals()
  return content


class _Estimates:
  """Values of questions by dataset, of which intervals are wanted.

  Drawing resamples is what takes time, and those of the same datasets can
  share them.

  Args:
    sampling: how.
  """

  def __init__(self, sampling: Resampling):
    self.sampling = sampling
    self._wanted: dict[
      tuple[str, ...], list[tuple[dict[str, Any], list[np.ndarray]]]
    ] = {}

  def mean(self, name: str, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The mean of the datasets' means in percent, as a value of `name`.

    Args:
      name: of the mean in what is returned.
      groups: dataset -> value of each question.

    Returns:
      An object whose `interval` will be there after `fill_intervals`.
    """
    value: dict[str, Any] = {
      name: 100 * statistics.macro_mean(list(groups.values()))
    }
    self._wanted.setdefault(tuple(groups), []).append(
      (value, list(groups.values()))
    )
    return value

  def fill_intervals(self) -> None:
    """Writes `interval` into all that `mean` returned."""
    for wanted in self._wanted.values():
      low, high = statistics.bootstrap_intervals(
        [
          np.stack(values, axis=1)
          for values in zip(*[groups for _, groups in wanted], strict=True)
        ],
        resamples=self.sampling.resamples,
        seed=self.sampling.seed,
        level=LEVEL,
      )
      for (value, _), ends in zip(
        wanted, zip(low, high, strict=True), strict=True
      ):
        value['interval'] = [100 * float(end) for end in ends]


def column_of(cell: Cell) -> Cell:
  """The cell without its dataset."""
  return dataclasses.replace(cell, dataset='')


def is_main(cell: Cell, results: Results) -> bool:
  """Whether a cell has the main value on every axis that applies to it."""
  wanted = results.num_passages if CONDITIONS[cell.condition].passages else 0
  return (
    (not cell.table or cell.num_active == results.num_active.get(cell.table))
    and cell.num_passages == wanted
    and (not wanted or cell.retriever == results.retriever)
  )


def _columns(results: Results) -> dict[Cell, dict[str, CellResult]]:
  """Column -> dataset -> its cell, both in the order of the report."""
  # Retrievers and models have no order but that in which they were asked.
  models, retrievers = (
    list(dict.fromkeys(getattr(cell, name) for cell in results.cells))
    for name in ('model', 'retriever')
  )
  conditions, tables = list(results.conditions), ['', *results.num_active]

  def order(cell: Cell):
    return (
      conditions.index(cell.condition),
      models.index(cell.model),
      tables.index(cell.table),
      cell.num_active,
      cell.num_passages,
      retrievers.index(cell.retriever),
    )

  columns: dict[Cell, dict[str, CellResult]] = collections.defaultdict(dict)
  for dataset in results.records:
    for cell, result in results.cells.items():
      if cell.dataset == dataset:
        columns[column_of(cell)][dataset] = result
  return {column: columns[column] for column in sorted(columns, key=order)}


def _coordinates(cell: Cell) -> dict[str, Any]:
  values = {name: getattr(cell, name) for name in _COORDINATES}
  if not cell.dataset:
    del values['dataset']
  return values


def _scores(
  found: Mapping[str, CellResult], estimates: _Estimates
) -> dict[str, Any]:
  """Scores of one cell, or averages over those of several datasets."""
  first = next(iter(found.values()))
  metrics = [
    name
    for name in first.values
    if all(name in result.values for result in found.values())
  ]
  return {
    'n': sum(len(result.answers) for result in found.values()),
    'metrics': {
      name: estimates.mean(
        'mean',
        {dataset: result.values[name] for dataset, result in found.items()},
      )
      for name in metrics
    },
    'mean_tokens': _mean_over(found, lambda answer: answer.num_tokens),
    'stop': {stop: 100 * _mean_over(found, _ended_by(stop)) for stop in STOPS},
  }


def _ended_by(stop: str) -> Callable[[Answer], float]:
  return lambda answer: float(answer.stop == stop)


def _mean_over(
  found: Mapping[str, CellResult], value: Callable[[Answer], float]
) -> float:
  return statistics.macro_mean(
    [
      np.array([value(answer) for answer in result.answers], float)
      for result in found.values()
    ]
  )


def _pairs(mains: Sequence[Cell], reference: str) -> list[tuple[Cell, Cell]]:
  """Which columns are compared; no two are twice."""
  with_reference = [
    (column, other)
    for column, other in itertools.permutations(mains, 2)
    if other.condition == reference
    and other.model == column.model
    and column.condition != reference
  ]
  with_tokens = [
    pair
    for pair in itertools.permutations(mains, 2)
    if CONDITIONS[pair[0].condition].tokens
  ]
  pairs: dict[frozenset[Cell], tuple[Cell, Cell]] = {}
  for a, b in with_reference + with_tokens:
    pairs.setdefault(frozenset((a, b)), (a, b))
  return list(pairs.values())


def _compare(
  of_a: Mapping[str, CellResult],
  of_b: Mapping[str, CellResult],
  a: Cell,
  b: Cell,
  datasets: Sequence[str],
  estimates: _Estimates,
) -> list[dict[str, Any]]:
  """The average if there is one, then each dataset that both columns have."""
  both = [name for name in datasets if name in of_a and name in of_b]
  scopes = {name: [name] for name in both}
  if len(both) == len(datasets):
    scopes = {'': both} | scopes
  return [
    {
      'dataset': scope,
      'a': _coordinates(a),
      'b': _coordinates(b),
      'n': sum(len(of_a[name].answers) for name in names),
      'metrics': {
        metric: _difference(
          {name: of_a[name].values[metric] for name in names},
          {name: of_b[name].values[metric] for name in names},
          estimates,
        )
        for metric in COMPARED
      },
    }
    for scope, names in scopes.items()
  ]


def _difference(
  a: Mapping[str, np.ndarray],
  b: Mapping[str, np.ndarray],
  estimates: _Estimates,
) -> dict[str, Any]:
  value = estimates.mean('difference', {name: a[name] - b[name] for name in a})
  value['p_value'] = statistics.paired_test(
    list(a.values()),
    list(b.values()),
    permutations=estimates.sampling.permutations,
    seed=estimates.sampling.seed,
  )
  return value
