"""A picture of the lengths of examples and the shapes of batches."""

import numpy as np
from etils import epath

# Draws without a display.
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.data.inspect.inspect_stats import Stats
from vtokens.host import plots, writers

_COLORS = {'prefix': '#4c78a8', 'suffix': '#54a24b', 'answer': '#e4a11b'}
_BINS = 40


def plot_lengths(path: epath.PathLike, stats: Stats, title: str) -> None:
  """Histograms of lengths, and how often each shape is used, in one PNG.

  Args:
    path: the file; written whole or not at all.
    stats: what to draw.
    title: of the picture.
  """
  names = [name for name, n in stats.lengths.items() if n.any()]
  columns = len(names) + bool(stats.shapes)
  figure = Figure(figsize=(3.6 * columns, 3.4), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize='medium')
  all_axes = figure.subplots(1, columns, squeeze=False)[0]
  for name, axes in zip(names, all_axes, strict=False):
    lengths, limit = stats.lengths[name], stats.limits[name]
    # Whole numbers in each bin, and equally many.
    step = -(-(int(np.ptp(lengths)) + 1) // _BINS)
    bins = np.arange(lengths.min(), lengths.max() + step + 1, step) - 0.5
    axes.hist(lengths, bins=bins, color=_COLORS[name])
    axes.axvline(limit, color='0.3', ls='--', lw=1, label=f'limit {limit}')
    axes.set(xlabel=f'{name} tokens', ylabel='examples', xlim=(0, None))
    axes.legend(frameon=False, fontsize='small')
  if stats.shapes:
    _plot_shapes(all_axes[-1], stats)
  for axes in all_axes:
    axes.spines[['top', 'right']].set_visible(False)
  writers.write_bytes(path, plots.png(figure, dpi=120))


def _plot_shapes(axes, stats: Stats) -> None:
  """Tokens computed by shape, and how many of them are real."""
  names = [f'{prefix} + {suffix}' for prefix, suffix in stats.shapes]
  used = stats.shapes.values()
  total = sum(use.computed for use in used)
  axes.barh(
    names,
    [100 * use.computed / total for use in used],
    color='0.85',
    label='padding',
  )
  axes.barh(
    names,
    [100 * use.real / total for use in used],
    color='#b279a2',
    label='real tokens',
  )
  axes.set(xlabel='% of the tokens computed', ylabel='prefix + suffix of a row')
  axes.invert_yaxis()
  axes.legend(frameon=False, fontsize='small')
