"""Tables of a report, in the layout of the paper's."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vtokens.evaluation.asking.cells import Cell
from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting.columns import AVERAGE, Curves
from vtokens.evaluation.reporting.summary import (
  LEVEL,
  CellScores,
  Difference,
  Estimate,
  Summary,
)
from vtokens.host import markdown

METRICS = {
  'em': 'EM',
  'f1': 'F1',
  'contains': 'containment',
  'char_f1': 'character F1',
}
# Axes in the table of all cells, and their headings.
_AXES = {
  'model': 'model',
  'condition': 'condition',
  'table': 'table',
  'retriever': 'retriever',
  'num_active': 'k',
  'num_passages': 'm',
}


@dataclasses.dataclass(frozen=True)
class ReportTable:
  """A table of text.

  Attributes:
    title: text above the table.
    header: heading of each column.
    rows: texts of the cells; '' for no value.
    num_labels: number of leading columns with labels; the others have numbers.
    note: text below the table.
  """

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  num_labels: int = 1
  note: str = ''


def main_tables(summary: Summary) -> list[ReportTable]:
  """EM/F1 of datasets by conditions, with and without retrieval."""
  tables = []
  for title, passages in (
    ('With retrieval', True),
    ('Without retrieval', False),
  ):
    columns = columns_lib.at(summary, passages=passages)
    if not columns:
      continue
    rows = [
      (scope, *[_em_f1(columns_lib.find(summary, c, scope)) for c in columns])
      for scope in columns_lib.scopes(summary)
    ]
    about = columns_lib.common(columns)
    tables.append(
      ReportTable(
        title + f' ({about})' * bool(about),
        ('EM/F1', *columns_lib.labels(columns)),
        _filled(rows, 1),
      )
    )
  return tables


def axis_tables(summary: Summary) -> list[ReportTable]:
  """Tables over k, over the number of passages, and over retrievers."""
  tables = []
  for axis, title in (
    ('num_active', 'Number of virtual tokens (k)'),
    ('num_passages', 'Number of passages (m)'),
    ('retriever', 'Retrievers'),
  ):
    for curves in columns_lib.curves(summary, axis):
      tables.append(_axis_table(curves, axis, title))
  return tables


def spread(values: Sequence[float]) -> tuple[float, float]:
  """Mean and population variance, as in table 4 of the paper.

  Its 21.23, 23.07, 24.38 and 25.66 have the variance 2.69 if divided by 4.
  """
  return statistics.fmean(values), statistics.pvariance(values)


def details_table(summary: Summary) -> ReportTable:
  """Every cell and average, with all metrics and their intervals."""
  several = len(summary.datasets) > 1
  listed = [*(summary.averages if several else ()), *summary.cells]
  metrics = [
    name for name in METRICS if any(name in one.metrics for one in listed)
  ]
  axes = [
    axis
    for axis in _AXES
    if axis == 'condition'
    or len({getattr(one.cell, axis) for one in listed} - {''}) > 1
  ]
  rows = [
    (
      one.cell.dataset or AVERAGE,
      *[_value_on(one.cell, axis) for axis in axes],
      str(one.n),
      *[_with_interval(one.metrics.get(name)) for name in metrics],
      f'{one.mean_tokens:.1f}',
      f'{one.stop["end"]:.1f}',
    )
    for one in listed
  ]
  return ReportTable(
    'All cells',
    (
      'dataset',
      *[_AXES[axis] for axis in axes],
      'n',
      *[METRICS[name] for name in metrics],
      'tokens',
      'ended %',
    ),
    tuple(rows),
    1 + sum(axis not in ('num_active', 'num_passages') for axis in axes),
    f'In brackets {100 * LEVEL:.0f} % bootstrap intervals. tokens: generated, '
    'on average; ended: share of the answers that the model ended itself.',
  )


def comparisons_table(summary: Summary) -> ReportTable | None:
  """Differences of conditions, with intervals and p-values."""
  several = len(summary.datasets) > 1
  found = [one for one in summary.comparisons if several or one.dataset]
  if not found:
    return None
  scopes = ['', *summary.datasets]  # The averages first.
  found.sort(key=lambda comparison: scopes.index(comparison.dataset))
  names = columns_lib.main_labels(summary)
  metrics = list(found[0].metrics)
  rows = []
  for one in found:
    row = [one.dataset or AVERAGE, names[one.a], names[one.b]]
    for name in metrics:
      difference = one.metrics[name]
      row += [signed_interval(difference), p_text(difference.p_value)]
    rows.append(tuple(row))
  count = summary.resampling.permutations
  return ReportTable(
    'Paired tests',
    (
      'dataset',
      'A',
      'B',
      *[text for name in metrics for text in (f'{METRICS[name]}, A - B', 'p')],
    ),
    tuple(rows),
    3,
    f'Two-sided approximate randomisation, {count:,} permutations; p is not '
    'corrected for the number of tests.',
  )


def generic_tables(title: str, value: dict[str, Any]) -> list[ReportTable]:
  """Tables of a JSON object: its scalars, then each list of objects.

  Values nested deeper are in report.json alone.
  """
  tables = []
  scalars = [(k, plain(v)) for k, v in value.items() if _is_plain(v)]
  if scalars:
    tables.append(ReportTable(title, ('', 'value'), tuple(scalars)))
  for key, part in value.items():
    if isinstance(part, dict) and part:
      tables += generic_tables(f'{title}: {key}', part)
    elif isinstance(part, list) and part and not _is_plain(part):
      tables.append(_table_of(f'{title}: {key}', part))
  return tables


def plain(value: Any) -> str:
  """A scalar or an interval (a pair of numbers) as text."""
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return f'[{", ".join(map(plain, value))}]'
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return f'{value:,}' if isinstance(value, int) else str(value)


def signed_interval(difference: Difference) -> str:
  """A difference and its interval, each with its sign."""
  low, high = difference.estimate.interval
  return f'{difference.estimate.mean:+.2f} [{low:+.2f}, {high:+.2f}]'


def p_text(p: float) -> str:
  """A p-value."""
  return f'{p:.4f}' if p >= 0.0001 else '<0.0001'


def p_equals(text: str) -> str:
  """The text after `p` in a sentence."""
  return text if text.startswith('<') else f'= {text}'


def to_markdown(table: ReportTable) -> str:
  """The table in Markdown, aligned so that the source is readable too."""
  cells = [
    [markdown.text(text) for text in row] for row in (table.header, *table.rows)
  ]
  widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
  numbers = [i >= table.num_labels for i in range(len(widths))]
  lines = []
  for row in cells:
    padded = [
      text.rjust(width) if number else text.ljust(width)
      for text, width, number in zip(row, widths, numbers, strict=True)
    ]
    lines.append(f'| {" | ".join(padded)} |')
  rule = [
    '-' * (width - 1) + ':' if number else '-' * width
    for width, number in zip(widths, numbers, strict=True)
  ]
  lines.insert(1, f'| {" | ".join(rule)} |')
  return '\n'.join(lines)


def _axis_table(curves: Curves, axis: str, title: str) -> ReportTable:
  values = list(
    dict.fromkeys(x for series in curves.series for x, _ in series.points)
  )
  extra: tuple[str, ...] = ()
  if axis == 'retriever':
    extra = ('average', 'variance')
  else:
    values.sort()
  rows = []
  for series in curves.series:
    points = dict(series.points)
    row = [series.label, *[_em_f1(points.get(value)) for value in values]]
    if extra and len(points) == len(values):
      both = [
        spread([scores.metrics[name].mean for scores in points.values()])
        for name in ('em', 'f1')
      ]
      row += [f'{em:.2f}/{f1:.2f}' for em, f1 in zip(*both, strict=True)]
    elif extra:
      row += ['', '']
    rows.append(tuple(row))
  note = ''
  if axis == 'num_active' and curves.references:
    note = 'For comparison: ' + ', '.join(
      f'{label} {_em_f1(scores)}' for label, scores in curves.references
    )
  elif extra:
    note = "The variance is the population's, as the paper's is."
  about = f', {curves.about}' * bool(curves.about)
  return ReportTable(
    f'{title}, {curves.scope}{about}',
    ('EM/F1', *map(str, values), *extra),
    _filled(rows, 1),
    note=note,
  )


def _filled(
  rows: Iterable[tuple[str, ...]], num_labels: int
) -> tuple[tuple[str, ...], ...]:
  """The rows with a number."""
  return tuple(row for row in rows if any(row[num_labels:]))


def _em_f1(scores: CellScores | None) -> str:
  if scores is None:
    return ''
  return '/'.join(f'{scores.metrics[name].mean:.2f}' for name in ('em', 'f1'))


def _with_interval(estimate: Estimate | None) -> str:
  if estimate is None:
    return ''
  low, high = estimate.interval
  return f'{estimate.mean:.2f} [{low:.2f}, {high:.2f}]'


def _value_on(cell: Cell, axis: str) -> str:
  # Conditions that show no passages have m = 0.
  shown = axis == 'num_passages' or cell.applies(axis)
  return str(getattr(cell, axis)) if shown else ''


def _is_plain(value: Any) -> bool:
  pair = isinstance(value, list) and 0 < len(value) <= 2
  if pair:
    return all(isinstance(v, (int, float)) for v in value)
  return not isinstance(value, (dict, list))


def _table_of(title: str, rows: Sequence[Any]) -> ReportTable:
  """One row for each object, one column for each of their plain values."""
  objects = [row if isinstance(row, dict) else {'value': row} for row in rows]
  keys = dict.fromkeys(
    key for row in objects for key, value in row.items() if _is_plain(value)
  )
  return ReportTable(
    title,
    tuple(keys),
    tuple(tuple(plain(row.get(key)) for key in keys) for row in objects),
  )
