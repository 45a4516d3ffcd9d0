"""A picture of the lengths of examples and the shapes of batches."""

import numpy as np
from etils import epath

# Draws without a display.
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.data.inspect.example_stats import Stats
from vtokens.host import plots, writers

_COLORS = {'prefix': '#4c78a8', 'suffix': '#54a24b', 'answer': '#e4a11b'}
_BINS = 40


def plot_lengths(path: epath.PathLike, stats: Stats, title: str) -> None:
  """Draws a histogram of each length, and the tokens of each shape, as PNG.

  Args:
    path: the file; written whole or not at all.
    stats: what to draw.
    title: title of the picture.
  """
  columns = len(stats.lengths) + bool(stats.shapes)
  figure = Figure(figsize=(3.6 * columns, 3.4), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize='medium')
  all_axes = figure.subplots(1, columns, squeeze=False)[0]
  for (name, n), axes in zip(stats.lengths.items(), all_axes, strict=False):
    # All bins hold equally many whole numbers.
    step = -(-(int(np.ptp(n)) + 1) // _BINS)
    bins = np.arange(n.min(), n.max() + step + 1, step) - 0.5
    axes.hist(n, bins=bins, color=_COLORS[name])
    limit = stats.limits[name]
    axes.axvline(limit, color='0.3', ls='--', lw=1, label=f'limit {limit}')
    axes.set(xlabel=f'{name} tokens', ylabel='examples', xlim=(0, None))
  if stats.shapes:
    names = [f'{prefix} + {suffix}' for prefix, suffix in stats.shapes]
    _, real, computed = np.array([*stats.shapes.values()]).T
    scale, axes = 100 / computed.sum(), all_axes[-1]
    axes.barh(names, scale * computed, color='0.85', label='padding')
    axes.barh(names, scale * real, color='#b279a2', label='real tokens')
    axes.set(xlabel='% of the tokens computed', ylabel='prefix + suffix')
    axes.invert_yaxis()
  for axes in all_axes:
    axes.legend(frameon=False, fontsize='small')
    axes.spines[['top', 'right']].set_visible(False)
  writers.write_bytes(path, plots.png(figure, dpi=120))
