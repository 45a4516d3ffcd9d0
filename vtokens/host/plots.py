"""Pictures: PNG files, and the curves of a run."""

import io
from collections.abc import Sequence
from typing import Any

from etils import epath

# Draws without a display.
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.host import writers


def png(figure: Figure, dpi: int) -> bytes:
  """Renders a figure to the content of a PNG file."""
  file = io.BytesIO()
  figure.savefig(file, dpi=dpi, format='png')
  return file.getvalue()


def plot_run(
  path: epath.PathLike,
  metrics: Sequence[dict[str, Any]],
  summary: dict[str, Any],
) -> None:
  """Plots loss by step and EM by number of virtual tokens, in one PNG.

  Args:
    path: the file to write.
    metrics: lines of metrics.jsonl.
    summary: content of summary.json.
  """
  figure = Figure(figsize=(10, 4), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  loss, em = figure.subplots(1, 2)

  train = [(row['step'], row['loss']) for row in metrics if 'loss' in row]
  valid = [
    (row['step'], row['validation_loss'])
    for row in metrics
    if 'validation_loss' in row
  ]
  if train:
    loss.plot(*zip(*train, strict=True), lw=0.6, color='0.7', label='training')
    smooth = _running_mean([value for _, value in train])
    loss.plot([step for step, _ in train], smooth, color='C0', label='smoothed')
  if valid:
    loss.plot(*zip(*valid, strict=True), 'o-', color='C1', label='validation')
  loss.set(xlabel='step', ylabel='loss (nats per answer token)')

  points = sorted((int(k), v['em']) for k, v in summary['k'].items())
  if points:
    em.plot(
      *zip(*points, strict=True), 'o-', color='C0', label='virtual tokens'
    )
  untrained = {
    name: scores['em']
    for name, scores in summary['conditions'].items()
    if name != 'tokens'
  }
  for i, (name, value) in enumerate(untrained.items()):
    em.axhline(value, ls='--', lw=1, color=f'C{i + 1}', label=name)
  em.set(
    xlabel='virtual tokens used (k)', ylabel='exact match (%)', ylim=(0, None)
  )
  for axes in (loss, em):
    if axes.lines:
      axes.legend(frameon=False, fontsize='small')
    axes.spines[['top', 'right']].set_visible(False)
  writers.write_bytes(path, png(figure, dpi=120))


def _running_mean(values: Sequence[float], width: int = 10) -> list[float]:
  out = []
  for i in range(len(values)):
    part = values[max(0, i - width + 1) : i + 1]
    out.append(sum(part) / len(part))
  return out
