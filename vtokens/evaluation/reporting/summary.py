"""What a report says of the results: scores, intervals and paired tests."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vtokens.evaluation.asking.cells import (
  AXES,
  Answer,
  Cell,
  CellResult,
  MainValues,
  Results,
)
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.reporting import abstention, statistics
from vtokens.evaluation.reporting.abstention import Abstention
from vtokens.scoring.citations import CitationScores
from vtokens.scoring.refusals import RefusalCurve

LEVEL = 0.95
# What ends an answer; see cells.Answer.
STOPS = ('end', 'newline', 'length')
# The metrics in which conditions are compared.
COMPARED = ('em', 'f1')


@dataclasses.dataclass(frozen=True)
class Resampling:
  """How uncertainty is estimated.

  Attributes:
    resamples: resamples of the bootstrap, for each interval.
    permutations: permutations of each paired test.
    seed: seed of both.
  """

  resamples: int
  permutations: int
  seed: int


@dataclasses.dataclass
class Estimate:
  """The mean over questions, in percent, or a difference of two means.

  Attributes:
    mean: the mean of the means of all datasets.
    interval: lower and upper end of its confidence interval.
  """

  mean: float
  interval: tuple[float, float] = (np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class CellScores:
  """Scores of a cell, or of a column averaged over all datasets.

  Attributes:
    cell: the cell; without a dataset for an average.
    main: whether its column is a main one.
    n: number of questions with an answer, which the metrics are of.
    metrics: estimate by metric.
    mean_tokens: mean length of the answers, in tokens.
    stop: share of the answers, in percent, by what ended them.
  """

  cell: Cell
  main: bool
  n: int
  metrics: dict[str, Estimate]
  mean_tokens: float
  stop: dict[str, float]

  def as_json(self) -> dict[str, Any]:
    """The object in report.json."""
    return {
      **_coordinates(self.cell),
      'main': self.main,
      'n': self.n,
      'metrics': {
        name: {'mean': one.mean, 'interval': list(one.interval)}
        for name, one in self.metrics.items()
      },
      'mean_tokens': self.mean_tokens,
      'stop': self.stop,
    }


@dataclasses.dataclass(frozen=True)
class Difference:
  """How two columns differ in a metric.

  Attributes:
    estimate: difference of the means, a - b, in percent.
    p_value: of the paired test.
  """

  estimate: Estimate
  p_value: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two columns compared on the same questions.

  Attributes:
    dataset: name of the dataset; '' for the average over all.
    a: a column.
    b: another column.
    n: number of questions with an answer.
    metrics: difference by metric.
  """

  dataset: str
  a: Cell
  b: Cell
  n: int
  metrics: dict[str, Difference]

  def as_json(self) -> dict[str, Any]:
    """The object in report.json."""
    return {
      'dataset': self.dataset,
      'a': _coordinates(self.a),
      'b': _coordinates(self.b),
      'n': self.n,
      'metrics': {
        name: {
          'difference': one.estimate.mean,
          'p_value': one.p_value,
          'interval': list(one.estimate.interval),
        }
        for name, one in self.metrics.items()
      },
    }


@dataclasses.dataclass(frozen=True)
class Summary:
  """All that a report says of the results. Nothing is rounded.

  A column is a cell without its dataset. It is a main column if it has the main
  value on every axis that applies to it. The average of a column gives each
  dataset the same weight, as in the paper; there is one only if the column has
  a cell for every dataset.

  Attributes:
    datasets: number of questions by dataset.
    conditions: description by condition, in the order of the report.
    main: main values of the axes.
    reference: the condition that others are compared with, by model.
    resampling: how uncertainty was estimated.
    columns: all columns, in the order of the report.
    cells: scores of all cells.
    averages: scores of the columns that have an average.
    comparisons: each main column with the reference of its model, and each
      main column with virtual tokens with every other.
    abstentions: confidence and refusals of all cells.
    refusal_curves: refusals by their bias, by column with virtual tokens that
      were trained to refuse, over the questions of all its datasets.
    citations: scores of citations, by cell with citations.
  """

  datasets: dict[str, int]
  conditions: dict[str, str]
  main: MainValues
  reference: str
  resampling: Resampling
  columns: tuple[Cell, ...]
  cells: tuple[CellScores, ...]
  averages: tuple[CellScores, ...]
  comparisons: tuple[Comparison, ...]
  abstentions: tuple[Abstention, ...]
  refusal_curves: Mapping[Cell, RefusalCurve]
  citations: Mapping[Cell, CitationScores]

  @property
  def main_columns(self) -> list[Cell]:
    """The main columns, in the order of the report."""
    return [column for column in self.columns if self.main.hold(column)]

  def as_json(self) -> dict[str, Any]:
    """The content of report.json that tells the results."""
    return {
      'datasets': self.datasets,
      'conditions': self.conditions,
      'main': {**vars(self.main), 'num_active': dict(self.main.num_active)},
      'reference': self.reference,
      'statistics': {'level': LEVEL, **dataclasses.asdict(self.resampling)},
      'columns': [
        _coordinates(column) | {'main': self.main.hold(column)}
        for column in self.columns
      ],
      'cells': [scores.as_json() for scores in self.cells],
      'averages': [scores.as_json() for scores in self.averages],
      'comparisons': [one.as_json() for one in self.comparisons],
      'abstentions': [one.as_json() for one in self.abstentions],
      'refusal_curves': [
        _coordinates(column)
        | {name: values.tolist() for name, values in vars(curve).items()}
        for column, curve in self.refusal_curves.items()
      ],
      'citations': [
        _coordinates(cell) | scores.as_dict()
        for cell, scores in self.citations.items()
      ],
    }


def summarize(
  results: Results, resampling: Resampling, reference: str = 'prompt'
) -> Summary:
  """Means, intervals, averages over datasets and paired tests.

  Args:
    results: results of an evaluation.
    resampling: how uncertainty is estimated.
    reference: the condition that all others are compared with, by model.
  """
  columns = _columns(results)
  mains = [column for column in columns if results.main.hold(column)]
  datasets = list(results.records)
  estimates = _Estimates(resampling)
  summary = Summary(
    datasets={name: len(rows) for name, rows in results.records.items()},
    conditions={
      column.condition: CONDITIONS[column.condition].text for column in columns
    },
    main=results.main,
    reference=reference,
    resampling=resampling,
    columns=tuple(columns),
    cells=tuple(
      _scores(result.cell, column in mains, {dataset: result}, estimates)
      for dataset in datasets
      for column, found in columns.items()
      if (result := found.get(dataset))
    ),
    averages=tuple(
      _scores(column, column in mains, found, estimates)
      for column, found in columns.items()
      if len(found) == len(datasets)
    ),
    comparisons=tuple(
      comparison
      for a, b in _pairs(mains, reference)
      for comparison in _compare(a, b, columns, datasets, estimates)
    ),
    abstentions=tuple(
      abstention.of_cell(result)
      for dataset in datasets
      for found in columns.values()
      if (result := found.get(dataset))
    ),
    refusal_curves={
      column: curve
      for column, found in columns.items()
      if results.refusal_bias is not None
      and (
        curve := abstention.refusal_curve(
          list(found.values()), results.refusal_bias
        )
      )
    },
    citations={
      result.cell: result.citations
      for dataset in datasets
      for found in columns.values()
      if (result := found.get(dataset)) and result.citations
    },
  )
  estimates.fill_intervals()
  return summary


class _Estimates:
  """Estimates whose intervals are computed together.

  Drawing resamples is what takes time, and all estimates of the same datasets
  share them.

  Args:
    resampling: how uncertainty is estimated.
  """

  def __init__(self, resampling: Resampling):
    self.resampling = resampling
    self._wanted: dict[
      tuple[str, ...], list[tuple[Estimate, list[np.ndarray]]]
    ] = {}

  def mean(self, groups: Mapping[str, np.ndarray]) -> Estimate:
    """The mean of the datasets' means, in percent.

    Args:
      groups: value of each question by dataset, arrays of shape [n].

    Returns:
      An estimate that has its interval after `fill_intervals`.
    """
    values = list(groups.values())
    estimate = Estimate(100 * statistics.macro_mean(values))
    self._wanted.setdefault(tuple(groups), []).append((estimate, values))
    return estimate

  def fill_intervals(self) -> None:
    """Sets the interval of every estimate that `mean` returned."""
    for wanted in self._wanted.values():
      low, high = statistics.bootstrap_intervals(
        [
          np.stack(values, axis=1)
          for values in zip(*[groups for _, groups in wanted], strict=True)
        ],
        resamples=self.resampling.resamples,
        seed=self.resampling.seed,
        level=LEVEL,
      )
      for (estimate, _), start, end in zip(wanted, low, high, strict=True):
        estimate.interval = (100 * float(start), 100 * float(end))


def _columns(results: Results) -> dict[Cell, dict[str, CellResult]]:
  """Cells by dataset by column, both in the order of the report."""
  # Retrievers and models are in the order in which they were asked.
  models, retrievers = (
    list(dict.fromkeys(getattr(cell, axis) for cell in results.cells))
    for axis in ('model', 'retriever')
  )
  conditions = list(results.conditions)
  tables = ['', *results.main.num_active]

  def order(cell: Cell) -> tuple[int, int, int, int, int, int]:
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
        columns[cell.column()][dataset] = result
  return {column: columns[column] for column in sorted(columns, key=order)}


def _coordinates(cell: Cell) -> dict[str, Any]:
  dataset = {'dataset': cell.dataset} if cell.dataset else {}
  return {**dataset, **{axis: getattr(cell, axis) for axis in AXES}}


def _scores(
  cell: Cell,
  main: bool,
  found: Mapping[str, CellResult],
  estimates: _Estimates,
) -> CellScores:
  """Scores of one cell, or averages over the cells of several datasets."""
  first = next(iter(found.values()))
  metrics = [
    name
    for name in first.values
    if all(name in result.values for result in found.values())
  ]
  return CellScores(
    cell=cell,
    main=main,
    n=sum(len(result.scored('em')) for result in found.values()),
    metrics={
      name: estimates.mean(
        {dataset: result.scored(name) for dataset, result in found.items()}
      )
      for name in metrics
    },
    mean_tokens=_mean_over(found, lambda answer: answer.num_tokens),
    stop={stop: 100 * _mean_over(found, _ended_by(stop)) for stop in STOPS},
  )


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
  """The columns to compare; no pair is there twice."""
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
  a: Cell,
  b: Cell,
  columns: Mapping[Cell, Mapping[str, CellResult]],
  datasets: Sequence[str],
  estimates: _Estimates,
) -> list[Comparison]:
  """The average if there is one, then each dataset that both columns have."""
  of_a, of_b = columns[a], columns[b]
  both = [name for name in datasets if name in of_a and name in of_b]
  scopes = {name: [name] for name in both}
  if len(both) == len(datasets):
    scopes = {'': both} | scopes
  return [
    Comparison(
      dataset=scope,
      a=a,
      b=b,
      n=sum(len(of_a[name].scored('em')) for name in names),
      metrics={
        metric: _difference(
          {name: of_a[name].scored(metric) for name in names},
          {name: of_b[name].scored(metric) for name in names},
          estimates,
        )
        for metric in COMPARED
      },
    )
    for scope, names in scopes.items()
  ]


def _difference(
  a: Mapping[str, np.ndarray],
  b: Mapping[str, np.ndarray],
  estimates: _Estimates,
) -> Difference:
  resampling = estimates.resampling
  return Difference(
    estimates.mean({name: a[name] - b[name] for name in a}),
    statistics.paired_test(
      list(a.values()),
      list(b.values()),
      permutations=resampling.permutations,
      seed=resampling.seed,
    ),
  )
