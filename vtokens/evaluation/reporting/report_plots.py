"""Plots of a report: curves over k and m, bars of retrievers and datasets."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, patches
from matplotlib.artist import Artist
from matplotlib.axes import Axes

# Draws without a display.
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.evaluation.asking.cells import Cell
from vtokens.evaluation.reporting import abstention_plots, report_tables
from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting.columns import Curves
from vtokens.evaluation.reporting.summary import CellScores, Estimate, Summary
from vtokens.host import plots

# Colours for any colour vision: Okabe and Ito, 2008, Color Universal Design,
# without black and yellow.
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


# Matplotlib would read a name with two $ as a formula.
@matplotlib.rc_context({'text.parse_math': False})
def draw(summary: Summary) -> dict[str, tuple[str, bytes]]:
  """Draws all plots for which there are cells.

  Args:
    summary: of the results.

  Returns:
    Title and PNG by base name.
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
      # Datasets can have any name, so plots are numbered.
      base = name if len(found) == 1 else f'{name}_{i + 1}'
      about = f', {curves.about}' * bool(curves.about)
      text = f'{title}, {curves.scope}{about}'
      pictures[base] = text, plots.png(figure, dpi=150)
  if len(summary.datasets) > 1:
    mains = summary.main_columns
    if mains:
      about = columns_lib.common(mains)
      text = 'Datasets' + f', {about}' * bool(about)
      pictures['datasets'] = (
        text,
        plots.png(_datasets(summary, mains, styles), dpi=150),
      )
  lines = {key: (style.color, style.line) for key, style in styles.items()}
  risk = abstention_plots.draw(summary, lines)
  if risk is not None:
    text = 'Wrong answers among the most confident ones'
    pictures['risk'] = text, plots.png(risk, dpi=150)
  return pictures


def _key(column: Cell) -> tuple[str, str, str]:
  """The coordinates that decide the colour of a column."""
  return column.model, column.condition, column.table


def _styles(summary: Summary) -> dict[tuple[str, str, str], _Style]:
  """The style of each key, the same in all plots."""
  styles: dict[tuple[str, str, str], _Style] = {}
  references = others = 0
  # Virtual tokens get the strongest colours.
  for column in sorted(summary.columns, key=lambda c: not c.table):
    key = _key(column)
    if key in styles:
      continue
    if column.condition == summary.reference:
      # One for each model.
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
    for name, scores in curves.references if axis == 'num_active' else ():
      value, style = scores.metrics[metric], styles[_key(scores.cell)]
      axes.axhspan(*value.interval, color=style.color, alpha=0.12, lw=0)
      axes.axhline(
        value.mean, color=style.color, ls=style.line, lw=1.5, label=name
      )
    for series in curves.series:
      x = [point for point, _ in series.points]
      values = [scores.metrics[metric] for _, scores in series.points]
      style = styles[_key(series.column)]
      low, high = zip(*[value.interval for value in values], strict=True)
      axes.fill_between(x, low, high, color=style.color, alpha=0.15, lw=0)
      axes.plot(
        x,
        [value.mean for value in values],
        color=style.color,
        ls=style.line,
        marker=style.marker,
        ms=5,
        lw=1.8,
        label=series.label,
      )
    points = sorted({x for series in curves.series for x, _ in series.points})
    if axis == 'num_active':
      # Scores change most over the first few tokens.
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
      bars = [_estimate(points.get(one), metric) for one in retrievers]
      _bar_group(axes, i, bars, fills)
      # Labels of columns side by side would overlap.
      text = series.label.replace(' (', '\n(')
      if len(points) == len(retrievers):
        average, variance = report_tables.spread(
          [scores.metrics[metric].mean for scores in points.values()]
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
  summary: Summary,
  mains: Sequence[Cell],
  styles: dict[tuple[str, str, str], _Style],
) -> Figure:
  scopes = columns_lib.scopes(summary)
  figure, panels = _panels(2, 1, height=6.2)
  labels = columns_lib.labels(mains)
  fills = [styles[_key(column)] for column in mains]
  for axes, (metric, label) in zip(panels, _METRICS, strict=True):
    for i, scope in enumerate(scopes):
      found = [columns_lib.find(summary, column, scope) for column in mains]
      _bar_group(axes, i, [_estimate(one, metric) for one in found], fills)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(scopes)), scopes)
    if len(scopes) > 6:
      axes.tick_params('x', rotation=25)
    _bound(axes)
  _legend(figure, *_patches(fills, labels))
  return figure


def _estimate(scores: CellScores | None, metric: str) -> Estimate | None:
  return None if scores is None else scores.metrics[metric]


def _bar_group(
  axes: Axes,
  x: int,
  estimates: Sequence[Estimate | None],
  fills: Sequence[_Style],
) -> None:
  """Bars with intervals side by side, centred at x."""
  width = 0.84 / len(estimates)
  for i, (value, fill) in enumerate(zip(estimates, fills, strict=True)):
    at = x + (i - (len(estimates) - 1) / 2) * width
    if value is None:
      # An empty place would look like a score of 0.
      axes.text(at, 0, 'n/a', rotation=90, ha='center', color='0.4', size=7)
      continue
    mean, (low, high) = value.mean, value.interval
    axes.bar(
      at,
      mean,
      width * 0.92,
      **_fill(fill),
      # The interval of few questions can lie beside the mean.
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


def _panels(
  rows: int, columns: int, *, height: float
) -> tuple[Figure, list[Axes]]:
  figure = Figure(figsize=(10, height), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  panels: list[Axes] = figure.subplots(rows, columns).tolist()
  for axes in panels:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='0.9', lw=0.8)
    axes.set_axisbelow(True)
  return figure, panels


def _bound(axes: Axes) -> None:
  """Limits the y axis to values from 0 to at most 100."""
  top = axes.get_ylim()[1]
  axes.set_ylim(0, min(100.0, top) if top > 0 else 1.0)


def _patches(
  fills: Sequence[_Style], labels: Sequence[str]
) -> tuple[list[Artist], Sequence[str]]:
  return [patches.Patch(**_fill(fill)) for fill in fills], labels


def _legend(
  figure: Figure, handles: Sequence[Artist], labels: Sequence[str]
) -> None:
  figure.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=-(-len(labels) // -(-len(labels) // 5)),  # Rows of equal length.
    frameon=False,
  )
