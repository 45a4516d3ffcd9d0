"""All that a report says of results, as one JSON value."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vtokens.evaluation import statistics
from vtokens.evaluation.cells import Cell, CellResult, Results
from vtokens.evaluation.conditions import CONDITIONS

LEVEL = 0.95
# What ends an answer; see cells.Answer.
STOPS = ('end', 'newline', 'length')
# The metrics that conditions are compared in.
COMPARED = ('em', 'f1')
_COORDINATES = tuple(field.name for field in dataclasses.fields(Cell))


@dataclasses.dataclass(frozen=True)
class Sampling:
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
  sampling = Sampling(resamples, permutations, seed)
  columns = _columns(results)
  mains = [column for column in columns if is_main(column, results)]
  complete = [
    column
    for column, found in columns.items()
    if len(found) == len(results.records)
  ]
  return {
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
    'statistics': {'level': LEVEL, **dataclasses.asdict(sampling)},
    'columns': [
      _coordinates(column) | {'main': column in mains} for column in columns
    ],
    'cells': [
      _coordinates(result.cell)
      | {'main': column in mains}
      | _scores([result], sampling)
      for dataset in results.records
      for column, found in columns.items()
      if (result := found.get(dataset))
    ],
    'averages': [
      _coordinates(column)
      | {'main': column in mains}
      | _scores(list(columns[column].values()), sampling)
      for column in complete
    ],
    'comparisons': [
      comparison
      for a, b in _pairs(mains, reference)
      for comparison in _compare(a, b, columns, list(results.records), sampling)
    ],
  }


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


def _scores(found: Sequence[CellResult], sampling: Sampling) -> dict[str, Any]:
  """Scores of one cell, or averages over those of several datasets."""
  metrics = [
    name
    for name in found[0].values
    if all(name in result.values for result in found)
  ]
  return {
    'n': sum(len(result.answers) for result in found),
    'metrics': {
      name: _mean([result.values[name] for result in found], sampling)
      for name in metrics
    },
    'mean_tokens': _mean_over(
      found, lambda result: [answer.num_tokens for answer in result.answers]
    ),
    'stop': {
      stop: 100
      * _mean_over(
        found,
        lambda result, stop=stop: [
          answer.stop == stop for answer in result.answers
        ],
      )
      for stop in STOPS
    },
  }


def _mean_over(found: Iterable[CellResult], values) -> float:
  return float(np.mean([np.mean(values(result)) for result in found]))


def _mean(groups: Sequence[np.ndarray], sampling: Sampling) -> dict[str, Any]:
  return {
    'mean': 100 * float(np.mean([group.mean() for group in groups])),
    'interval': _interval(groups, sampling),
  }


def _interval(groups: Sequence[np.ndarray], sampling: Sampling) -> list[float]:
  ends = statistics.bootstrap_interval(
    groups, resamples=sampling.resamples, seed=sampling.seed, level=LEVEL
  )
  return [100 * end for end in ends]


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
  a: Cell,
  b: Cell,
  columns: Mapping[Cell, Mapping[str, CellResult]],
  datasets: Sequence[str],
  sampling: Sampling,
) -> list[dict[str, Any]]:
  """The average if there is one, then each dataset that both columns have."""
  both = [
    name for name in datasets if name in columns[a] and name in columns[b]
  ]
  scopes = {name: [name] for name in both}
  if len(both) == len(datasets):
    scopes = {'': both} | scopes
  values = functools.partial(_values, columns)
  return [
    {
      'dataset': scope,
      'a': _coordinates(a),
      'b': _coordinates(b),
      'n': sum(len(columns[a][name].answers) for name in names),
      'metrics': {
        metric: _difference(
          values(a, names, metric), values(b, names, metric), sampling
        )
        for metric in COMPARED
      },
    }
    for scope, names in scopes.items()
  ]


def _values(columns, column: Cell, names: Sequence[str], metric: str):
  return [columns[column][name].values[metric] for name in names]


def _difference(
  a: Sequence[np.ndarray], b: Sequence[np.ndarray], sampling: Sampling
) -> dict[str, Any]:
  differences = [x - y for x, y in zip(a, b, strict=True)]
  return {
    'difference': 100 * float(np.mean([d.mean() for d in differences])),
    'interval': _interval(differences, sampling),
    'p_value': statistics.paired_test(
      a, b, permutations=sampling.permutations, seed=sampling.seed
    ),
  }
