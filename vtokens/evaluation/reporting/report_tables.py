"""Tables of a report, in the layout of the paper's."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting.columns import AVERAGE, Curves, Entry
from vtokens.host import markdown

METRICS = {
  'em': 'EM',
  'f1': 'F1',
  'contains': 'containment',
  'char_f1': 'character F1',
}
_COORDINATES = {
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
    title: above it.
    header: of each column.
    rows: '' where there is nothing to say.
    num_labels: leading columns that are labels; the others are numbers.
    note: below it.
  """

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  num_labels: int = 1
  note: str = ''


def main_tables(summary: dict[str, Any]) -> list[ReportTable]:
  """Datasets by conditions, with and without retrieval; EM/F1 in percent."""
  tables = []
  for title, passages in (
    ('With retrieval', True),
    ('Without retrieval', False),
  ):
    columns = columns_lib.at(summary, passages=passages)
    if not columns:
      continue
    rows = [
      (scope, *[_em_f1(_find(summary, c, scope)) for c in columns])
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


def axis_tables(summary: dict[str, Any]) -> list[ReportTable]:
  """Series over k, over the number of passages, and over retrievers."""
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
  """Mean and population variance, as table 4 of the paper has them.

  (Its 21.23, 23.07, 24.38 and 25.66 have the variance 2.69 if divided by 4.)
  """
  return statistics.fmean(values), statistics.pvariance(values)


def details_table(summary: dict[str, Any]) -> ReportTable:
  """Every cell and average with all metrics and their intervals."""
  several = len(summary['datasets']) > 1
  entries = [
    *[(AVERAGE, entry) for entry in summary['averages'] if several],
    *[(entry['dataset'], entry) for entry in summary['cells']],
  ]
  metrics = [
    name
    for name in METRICS
    if any(name in entry['metrics'] for _, entry in entries)
  ]
  keys = [
    key
    for key in _COORDINATES
    if key == 'condition'
    or len({entry[key] for _, entry in entries} - {''}) > 1
  ]
  rows = [
    (
      scope,
      *[_coordinate(entry, key) for key in keys],
      str(entry['n']),
      *[_with_interval(entry['metrics'].get(name)) for name in metrics],
      f'{entry["mean_tokens"]:.1f}',
      f'{entry["stop"]["end"]:.1f}',
    )
    for scope, entry in entries
  ]
  level = 100 * summary['statistics']['level']
  return ReportTable(
    'All cells',
    (
      'dataset',
      *[_COORDINATES[key] for key in keys],
      'n',
      *[METRICS[name] for name in metrics],
      'tokens',
      'ended %',
    ),
    tuple(rows),
    1 + sum(key not in ('num_active', 'num_passages') for key in keys),
    f'In brackets {level:.0f} % bootstrap intervals. tokens: generated, on '
    'average; ended: share of the answers that the model ended itself.',
  )


def comparisons_table(summary: dict[str, Any]) -> ReportTable | None:
  """Differences of conditions, with intervals and p-values."""
  several = len(summary['datasets']) > 1
  found = [c for c in summary['comparisons'] if several or c['dataset']]
  if not found:
    return None
  scopes = ['', *summary['datasets']]  # The averages first.
  found.sort(key=lambda comparison: scopes.index(comparison['dataset']))
  mains = columns_lib.mains(summary)
  names = {
    columns_lib.key_of(column): label
    for column, label in zip(mains, columns_lib.labels(mains), strict=True)
  }
  metrics = list(found[0]['metrics'])
  rows = []
  for comparison in found:
    row = [comparison['dataset'] or AVERAGE]
    row += [names[columns_lib.key_of(comparison[side])] for side in 'ab']
    for name in metrics:
      value = comparison['metrics'][name]
      row += [signed_interval(value), p_text(value['p_value'])]
    rows.append(tuple(row))
  count = summary['statistics']['permutations']
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
  """Tables of any JSON object: its scalars, then its lists of objects.

  What is nested deeper is only in report.json.
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
  """A scalar, or a pair of numbers (an interval), as text."""
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return f'[{", ".join(map(plain, value))}]'
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return f'{value:,}' if isinstance(value, int) else str(value)


def signed_interval(value: dict[str, Any]) -> str:
  """A difference and its interval, each with its sign."""
  low, high = value['interval']
  return f'{value["difference"]:+.2f} [{low:+.2f}, {high:+.2f}]'


def p_text(p: float) -> str:
  """A p-value."""
  return f'{p:.4f}' if p >= 0.0001 else '<0.0001'


def p_equals(text: str) -> str:
  """What follows `p` in a sentence."""
  return text if text.startswith('<') else f'= {text}'


def to_markdown(table: ReportTable) -> str:
  """The table in Markdown, aligned so that it reads as text too."""
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
        spread([entry['metrics'][name]['mean'] for entry in points.values()])
        for name in ('em', 'f1')
      ]
      row += [f'{em:.2f}/{f1:.2f}' for em, f1 in zip(*both, strict=True)]
    elif extra:
      row += ['', '']
    rows.append(tuple(row))
  note = ''
  if axis == 'num_active' and curves.references:
    note = 'For comparison: ' + ', '.join(
      f'{label} {_em_f1(entry)}' for label, entry in curves.references
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


def _find(summary: dict[str, Any], column: Entry, scope: str) -> Entry | None:
  return columns_lib.find(summary, column, scope)


def _filled(
  rows: Iterable[tuple[str, ...]], num_labels: int
) -> tuple[tuple[str, ...], ...]:
  """The rows that have a number."""
  return tuple(row for row in rows if any(row[num_labels:]))


def _em_f1(entry: Entry | None) -> str:
  if entry is None:
    return ''
  return '/'.join(
    f'{entry["metrics"][name]["mean"]:.2f}' for name in ('em', 'f1')
  )


def _with_interval(value: dict[str, Any] | None) -> str:
  if value is None:
    return ''
  low, high = value['interval']
  return f'{value["mean"]:.2f} [{low:.2f}, {high:.2f}]'


def _coordinate(entry: Entry, key: str) -> str:
  if key == 'num_active' and not entry['table']:
    return ''
  return str(entry[key])


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
