"""Pictures of a report: curves over k and m, retrievers, datasets."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, patches

# Draws without a display.
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting import report_tables
from vtokens.evaluation.reporting.columns import Curves, Entry
from vtokens.host import plots

# Told apart with any colour vision: Okabe and Ito, 2008, Color Universal
# Design, without black and yellow.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_REFERENCE = '#404040'
_MARKERS = 'osD^vPX*'
_HATCHES = ('', '///', '...')
_METRICS = (('em', 'exact match (%)'), ('f1', 'F1 (%)'))


@dataclasses.dataclass(frozen=True)
class _Style:
  color: str
  hatch: str = ''
  marker: str = ''
  line: str = ''


# A name with two $ would be read as a formula.
@matplotlib.rc_context({'text.parse_math': False})
def draw(summary: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
  """All pictures for which there are cells.

  Args:
    summary: of `summary.summarize`.

  Returns:
    Base name -> what it shows, and the PNG.
  """
  pictures = {}
  styles = _styles(summary)
  for axis, name, title in (
    ('num_active', 'k', 'Number of virtual tokens'),
    ('num_passages', 'passages', 'Number of passages'),
    ('retriever', 'retrievers', 'Retrievers'),
  ):
    found = columns_lib.curves(summary, axis)
    for i, curves in enumerate(found):
      figure = (
        _bars(curves) if axis == 'retriever' else _lines(curves, axis, styles)
      )
      # By number: datasets can have any name.
      base = name if len(found) == 1 else f'{name}_{i + 1}'
      about = f', {curves.about}' * bool(curves.about)
      text = f'{title}, {curves.scope}{about}'
      pictures[base] = text, plots.png(figure, dpi=150)
  if len(summary['datasets']) > 1:
    mains = columns_lib.mains(summary)
    if mains:
      about = columns_lib.common(mains)
      text = 'Datasets' + f', {about}' * bool(about)
      pictures['datasets'] = (
        text,
        plots.png(_datasets(summary, mains, styles), dpi=150),
      )
  return pictures


def _key(column: Entry) -> tuple[str, str, str]:
  """What a column has a colour of its own for."""
  return column['model'], column['condition'], column['table']


def _styles(summary: dict[str, Any]) -> dict[tuple[str, str, str], _Style]:
  """The same colour for the same thing in all pictures."""
  styles: dict[tuple[str, str, str], _Style] = {}
  references = others = 0
  # Virtual tokens get the strongest colours.
  for column in sorted(summary['columns'], key=lambda c: not c['table']):
    key = _key(column)
    if key in styles:
      continue
    if column['condition'] == summary['reference']:
      # Of several models, if any.
      styles[key] = _Style(_REFERENCE, _HATCHES[references % 3], 'o', '--')
      references += 1
    else:
      styles[key] = _Style(
        _COLORS[others % len(_COLORS)],
        _HATCHES[others // len(_COLORS) % 3],
        _MARKERS[others % len(_MARKERS)],
        ('-', '-.', ':')[others // len(_COLORS) % 3],
      )
      others += 1
  return styles


def _lines(
  curves: Curves, axis: str, styles: dict[tuple[str, str, str], _Style]
) -> Figure:
  figure, panels = _panels(1, 2, height=3.8)
  for axes, (metric, label) in zip(panels, _METRICS, strict=True):
    for name, entry in curves.references if axis == 'num_active' else ():
      value, style = entry['metrics'][metric], styles[_key(entry)]
      axes.axhspan(*value['interval'], color=style.color, alpha=0.12, lw=0)
      axes.axhline(
        value['mean'], color=style.color, ls=style.line, lw=1.5, label=name
      )
    for series in curves.series:
      x = [point for point, _ in series.points]
      values = [entry['metrics'][metric] for _, entry in series.points]
      style = styles[_key(series.column)]
      low, high = zip(*[value['interval'] for value in values], strict=True)
      axes.fill_between(x, low, high, color=style.color, alpha=0.15, lw=0)
      axes.plot(
        x,
        [value['mean'] for value in values],
        color=style.color,
        ls=style.line,
        marker=style.marker,
        ms=5,
        lw=1.8,
        label=series.label,
      )
    points = sorted({x for series in curves.series for x, _ in series.points})
    if axis == 'num_active':
      # The first few tokens matter most.
      axes.set_xscale('log')
      axes.set_xlabel('virtual tokens used (k)')
    else:
      axes.set_xlabel('passages (m)')
    axes.set_xticks(points, map(str, points))
    axes.minorticks_off()
    axes.set_ylabel(label)
    _bound(axes)
  _legend(figure, *panels[0].get_legend_handles_labels())
  return figure


def _bars(curves: Curves) -> Figure:
  wide = len(curves.series) > 3
  rows, columns, height = (2, 1, 7.0) if wide else (1, 2, 4.0)
  figure, panels = _panels(rows, columns, height=height)
  retrievers = list(
    dict.fromkeys(x for series in curves.series for x, _ in series.points)
  )
  shades = matplotlib.colormaps['cividis'](
    np.linspace(0.25, 0.95, len(retrievers))
  )
  fills = [_Style(colors.to_hex(shade)) for shade in shades]
  for axes, (metric, label) in zip(panels, _METRICS, strict=True):
    ticks = []
    for i, series in enumerate(curves.series):
      points = dict(series.points)
      entries = [points.get(retriever) for retriever in retrievers]
      _bar_group(axes, i, entries, metric, fills)
      # Labels of columns side by side would overlap.
      text = series.label.replace(' (', '\n(')
      if len(points) == len(retrievers):
        average, variance = report_tables.spread(
          [entry['metrics'][metric]['mean'] for entry in points.values()]
        )
        axes.hlines(average, i - 0.42, i + 0.42, color='0.1', lw=1.5, ls='--')
        text += f'\naverage {average:.2f}\nvariance {variance:.2f}'
      ticks.append(text)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(ticks)), ticks)
    _bound(axes)
  _legend(figure, *_patches(fills, retrievers))
  return figure


def _datasets(
  summary: dict[str, Any],
  mains: Sequence[Entry],
  styles: dict[tuple[str, str, str], _Style],
) -> Figure:
  scopes = columns_lib.scopes(summary)
  figure, panels = _panels(2, 1, height=6.2)
  labels = columns_lib.labels(mains)
  fills = [styles[_key(column)] for column in mains]
  for axes, (metric, label) in zip(panels, _METRICS, strict=True):
    for i, scope in enumerate(scopes):
      entries = [columns_lib.find(summary, c, scope) for c in mains]
      _bar_group(axes, i, entries, metric, fills)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(scopes)), scopes)
    if len(scopes) > 6:
      axes.tick_params('x', rotation=25)
    _bound(axes)
  _legend(figure, *_patches(fills, labels))
  return figure


def _bar_group(
  axes,
  x: int,
  entries: Sequence[Entry | None],
  metric: str,
  fills: Sequence[_Style],
) -> None:
  """Bars with intervals side by side, centred at x."""
  width = 0.84 / len(entries)
  for i, (entry, fill) in enumerate(zip(entries, fills, strict=True)):
    at = x + (i - (len(entries) - 1) / 2) * width
    if entry is None:
      # Else it would look like a score of 0.
      axes.text(at, 0, 'n/a', rotation=90, ha='center', color='0.4', size=7)
      continue
    value = entry['metrics'][metric]
    mean, (low, high) = value['mean'], value['interval']
    axes.bar(
      at,
      mean,
      width * 0.92,
      **_fill(fill),
      # An interval of few questions need not hold the mean.
      yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
      error_kw={'elinewidth': 0.9, 'ecolor': '0.2'},
    )


def _fill(style: _Style) -> dict[str, Any]:
  return {
    'facecolor': style.color,
    'hatch': style.hatch,
    'edgecolor': 'white',
    'linewidth': 0,
  }


def _panels(rows: int, columns: int, *, height: float):
  figure = Figure(figsize=(10, height), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(rows, columns).tolist()
  for axes in panels:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='0.9', lw=0.8)
    axes.set_axisbelow(True)
  return figure, panels


def _bound(axes) -> None:
  """Nothing below 0, and not above 100 unless it is needed."""
  top = axes.get_ylim()[1]
  axes.set_ylim(0, min(100.0, top) if top > 0 else 1.0)


def _patches(fills: Sequence[_Style], labels: Sequence[str]):
  return [patches.Patch(**_fill(fill)) for fill in fills], labels


def _legend(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
  figure.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=-(-len(labels) // -(-len(labels) // 5)),  # Rows of equal length.
    frameon=False,
  )
