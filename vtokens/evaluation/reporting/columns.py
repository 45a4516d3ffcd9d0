"""Columns of a report: which there are, and how they differ.

A column is a `Cell` without its dataset.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vtokens.evaluation.asking.cells import AXES, Cell
from vtokens.evaluation.reporting.summary import CellScores, Summary

# Stands in place of a dataset's name.
AVERAGE = 'Avg'
_PREFIX = {'num_active': 'k = ', 'num_passages': 'm = '}
_NAMED_AXES = tuple(axis for axis in AXES if axis != 'condition')


@dataclasses.dataclass(frozen=True)
class Series:
  """The scores of a column along an axis.

  Attributes:
    label: name of the column without the axis.
    column: the column at one of the points.
    points: value on the axis and the scores there.
  """

  label: str
  column: Cell
  points: tuple[tuple[Any, CellScores], ...]


@dataclasses.dataclass(frozen=True)
class Curves:
  """All series along one axis.

  Attributes:
    scope: name of a dataset, or `AVERAGE`.
    about: what all series have in common.
    series: at least one, each with at least two points.
    references: label and scores of the columns to compare with.
  """

  scope: str
  about: str
  series: tuple[Series, ...]
  references: tuple[tuple[str, CellScores], ...]


def labels(columns: Sequence[Cell], *, without: str = '') -> list[str]:
  """Names of columns: the condition and the axes on which they differ.

  Args:
    columns: columns that stand side by side.
    without: an axis that is not named.
  """
  differ = [
    axis
    for axis in _NAMED_AXES
    if axis != without and len(_values(columns, axis)) > 1
  ]
  names = []
  for column in columns:
    parts = [
      _name(axis, getattr(column, axis))
      for axis in differ
      if column.applies(axis)
    ]
    names.append(column.condition + (f' ({", ".join(parts)})' * bool(parts)))
  return names


def main_labels(summary: Summary) -> dict[Cell, str]:
  """The label of each main column."""
  mains = summary.main_columns
  return dict(zip(mains, labels(mains), strict=True))


def common(columns: Sequence[Cell], *, without: str = '') -> str:
  """What all columns have in common, and `labels` does not name."""
  parts = []
  for axis in _NAMED_AXES:
    values = _values(columns, axis)
    if axis != without and len(values) == 1 and values[0] != '':
      named = _name(axis, values[0])
      parts.append(f'{axis} {named}' if axis not in _PREFIX else named)
  return ', '.join(parts)


def at(summary: Summary, *, passages: bool) -> list[Cell]:
  """Columns with the main values on all axes, with or without passages.

  Args:
    summary: of the results.
    passages: columns that show passages; else columns that show none, because
      of their condition or because their number of passages is 0.
  """
  main = summary.main
  if passages and not main.num_passages:
    return []
  return [
    column
    for column in summary.columns
    if main.hold(column, without='num_passages')
    and column.num_passages == (main.num_passages if passages else 0)
  ]


def find(summary: Summary, column: Cell, scope: str) -> CellScores | None:
  """The scores of a column for a dataset, or for `AVERAGE`."""
  for scores in _in_scope(summary, scope):
    if scores.cell.column() == column.column():
      return scores
  return None


def scopes(summary: Summary) -> list[str]:
  """Datasets, and `AVERAGE` if there are several datasets and an average."""
  average = len(summary.datasets) > 1 and bool(summary.averages)
  return [*summary.datasets, *[AVERAGE] * average]


def curves(summary: Summary, axis: str) -> list[Curves]:
  """The series along an axis, all other axes at their main values.

  Args:
    summary: of the results.
    axis: num_active, num_passages or retriever.

  Returns:
    One for the averages over datasets. If the averages do not vary along the
    axis, one for each dataset that does.
  """
  averages = _curves_of(summary, axis, AVERAGE)
  if averages is not None:
    return [averages]
  found = [_curves_of(summary, axis, name) for name in summary.datasets]
  return [one for one in found if one is not None]


def _curves_of(summary: Summary, axis: str, scope: str) -> Curves | None:
  everything = _in_scope(summary, scope)
  groups: dict[tuple[Any, ...], dict[Any, CellScores]] = {}
  for scores in everything:
    cell = scores.cell
    if cell.applies(axis) and summary.main.hold(cell, without=axis):
      rest = tuple(
        getattr(cell, other)
        for other in AXES
        # The point without passages has no retriever.
        if other != axis and (other, axis) != ('retriever', 'num_passages')
      )
      groups.setdefault(rest, {})[getattr(cell, axis)] = scores
  series = [points for points in groups.values() if len(points) > 1]
  if not series:
    return None
  # The last point: the first may be m = 0, which has no retriever to name.
  heads = [list(points.values())[-1].cell for points in series]
  references = [
    scores
    for scores in everything
    if scores.main
    and scores.cell.condition == summary.reference
    and not scores.cell.table
  ]
  return Curves(
    scope if len(summary.datasets) > 1 else next(iter(summary.datasets)),
    common(heads, without=axis),
    tuple(
      Series(label, head, tuple(_sorted(points, axis)))
      for label, head, points in zip(
        labels(heads, without=axis), heads, series, strict=True
      )
    ),
    tuple(
      zip(labels([one.cell for one in references]), references, strict=True)
    ),
  )


def _sorted(
  points: dict[Any, CellScores], axis: str
) -> list[tuple[Any, CellScores]]:
  if axis == 'retriever':  # In the order of the report.
    return list(points.items())
  return sorted(points.items(), key=lambda point: point[0])


def _in_scope(summary: Summary, scope: str) -> Sequence[CellScores]:
  if scope == AVERAGE:
    return summary.averages
  return [scores for scores in summary.cells if scores.cell.dataset == scope]


def _values(columns: Sequence[Cell], axis: str) -> list[Any]:
  applying = (column for column in columns if column.applies(axis))
  return list(dict.fromkeys(getattr(column, axis) for column in applying))


def _name(axis: str, value: Any) -> str:
  return _PREFIX.get(axis, '') + str(value)
