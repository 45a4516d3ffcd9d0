"""Columns of a report: which there are, and what tells them apart.

A column is a dict with the coordinates of `cells.Cell` but for the dataset,
such as the objects in `summary.summarize`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vtokens.evaluation.conditions import CONDITIONS

Entry = dict[str, Any]
KEYS = (
  'model',
  'condition',
  'table',
  'num_active',
  'num_passages',
  'retriever',
)
# Shown instead of a dataset's name.
AVERAGE = 'Avg'
_PREFIX = {'num_active': 'k = ', 'num_passages': 'm = '}
_AXES = tuple(key for key in KEYS if key != 'condition')


@dataclasses.dataclass(frozen=True)
class Series:
  """What a column does along an axis.

  Attributes:
    label: of the column without the axis.
    column: the column at one of the points.
    points: value on the axis and entry of the summary there.
  """

  label: str
  column: Entry
  points: tuple[tuple[Any, Entry], ...]


@dataclasses.dataclass(frozen=True)
class Curves:
  """An axis along which something was varied.

  Attributes:
    scope: name of a dataset, or `AVERAGE`.
    about: what all series have in common.
    series: at least one, each with at least two points.
    references: label and entry of the columns to compare with.
  """

  scope: str
  about: str
  series: tuple[Series, ...]
  references: tuple[tuple[str, Entry], ...]


def key_of(column: Entry) -> tuple[Any, ...]:
  """The coordinates, hashable."""
  return tuple(column[key] for key in KEYS)


def labels(columns: Sequence[Entry], *, without: str = '') -> list[str]:
  """Names of columns: the condition and what else differs among them.

  Args:
    columns: that stand side by side.
    without: a coordinate that is not to be named.
  """
  differ = [
    axis
    for axis in _AXES
    if axis != without and len(_values(columns, axis)) > 1
  ]
  names = []
  for column in columns:
    parts = [_name(a, column[a]) for a in differ if _applies(column, a)]
    names.append(column['condition'] + (f' ({", ".join(parts)})' * bool(parts)))
  return names


def common(columns: Sequence[Entry], *, without: str = '') -> str:
  """What `labels` leaves out because all columns have it, as text."""
  parts = []
  for axis in _AXES:
    values = _values(columns, axis)
    if axis != without and len(values) == 1 and values[0] != '':
      named = _name(axis, values[0])
      parts.append(f'{axis} {named}' if axis not in _PREFIX else named)
  return ', '.join(parts)


def at(summary: dict[str, Any], *, passages: bool) -> list[Entry]:
  """Columns with the main values on all axes, but perhaps without passages.

  Args:
    summary: of `summary.summarize`.
    passages: those that show passages; else those that show none, be it that
      the condition never does or that their number is 0.

  Returns:
    Entries of `summary['columns']`.
  """
  main = summary['main']
  if passages and not main['num_passages']:
    return []
  return [
    column
    for column in summary['columns']
    if _is_at(column, main, without='num_passages')
    and column['num_passages'] == (main['num_passages'] if passages else 0)
  ]


def mains(summary: dict[str, Any]) -> list[Entry]:
  """Columns with the main values on all axes that apply to them."""
  return [column for column in summary['columns'] if column['main']]


def find(summary: dict[str, Any], column: Entry, dataset: str) -> Entry | None:
  """What the summary says of a column for a dataset, or `AVERAGE`."""
  for entry in _entries(summary, dataset):
    if key_of(entry) == key_of(column):
      return entry
  return None


def scopes(summary: dict[str, Any]) -> list[str]:
  """Datasets, and `AVERAGE` where there are several and it exists."""
  average = len(summary['datasets']) > 1 and bool(summary['averages'])
  return [*summary['datasets'], *[AVERAGE] * average]


def curves(summary: dict[str, Any], axis: str) -> list[Curves]:
  """What was varied along an axis, all others at their main values.

  Args:
    summary: of `summary.summarize`.
    axis: num_active, num_passages or retriever.

  Returns:
    One for the averages over datasets; only if these do not vary, one for each
    dataset that does.
  """
  averages = _curves_of(summary, axis, AVERAGE)
  if averages is not None:
    return [averages]
  found = [_curves_of(summary, axis, name) for name in summary['datasets']]
  return [one for one in found if one is not None]


def _curves_of(summary: dict[str, Any], axis: str, scope: str) -> Curves | None:
  entries = _entries(summary, scope)
  groups: dict[tuple[Any, ...], dict[Any, Entry]] = {}
  for entry in entries:
    if _varies(entry, axis) and _is_at(entry, summary['main'], without=axis):
      rest = tuple(
        entry[key]
        for key in KEYS
        # Where no passages are shown there is no retriever.
        if key != axis and (key, axis) != ('retriever', 'num_passages')
      )
      groups.setdefault(rest, {})[entry[axis]] = entry
  series = [points for points in groups.values() if len(points) > 1]
  if not series:
    return None
  # Those at m = 0 have no retriever; any other point names the series.
  heads = [list(points.values())[-1] for points in series]
  references = [
    entry
    for entry in entries
    if entry['main']
    and entry['condition'] == summary['reference']
    and not entry['table']
  ]
  return Curves(
    scope if len(summary['datasets']) > 1 else next(iter(summary['datasets'])),
    common(heads, without=axis),
    tuple(
      Series(label, head, tuple(_sorted(points, axis)))
      for label, head, points in zip(
        labels(heads, without=axis), heads, series, strict=True
      )
    ),
    tuple(zip(labels(references), references, strict=True)),
  )


def _sorted(points: dict[Any, Entry], axis: str) -> list[tuple[Any, Entry]]:
  if axis == 'retriever':  # In the order of the report.
    return list(points.items())
  return sorted(points.items(), key=lambda point: point[0])


def _entries(summary: dict[str, Any], scope: str) -> list[Entry]:
  if scope == AVERAGE:
    return summary['averages']
  return [entry for entry in summary['cells'] if entry['dataset'] == scope]


def _varies(entry: Entry, axis: str) -> bool:
  """Whether an axis could be varied in an entry's condition."""
  if axis == 'num_active':
    return bool(entry['table'])
  shows = CONDITIONS[entry['condition']].passages
  return shows and (axis == 'num_passages' or entry['num_passages'] > 0)


def _is_at(entry: Entry, main: dict[str, Any], *, without: str) -> bool:
  """Whether all coordinates but one have their main values."""
  shows = CONDITIONS[entry['condition']].passages
  wanted = main['num_passages'] if shows else 0
  return (
    (
      without == 'num_active'
      or not entry['table']
      or entry['num_active'] == main['num_active'].get(entry['table'])
    )
    and (without == 'num_passages' or entry['num_passages'] == wanted)
    and (
      without == 'retriever'
      or not entry['num_passages']
      or entry['retriever'] == main['retriever']
    )
  )


def _applies(column: Entry, axis: str) -> bool:
  """Whether a coordinate says anything about a column."""
  if axis in ('table', 'num_active'):
    return bool(column['table'])
  if axis == 'num_passages':
    return CONDITIONS[column['condition']].passages
  return axis != 'retriever' or column['num_passages'] > 0


def _values(columns: Sequence[Entry], axis: str) -> list[Any]:
  return list(dict.fromkeys(c[axis] for c in columns if _applies(c, axis)))


def _name(axis: str, value: Any) -> str:
  return _PREFIX.get(axis, '') + str(value)
