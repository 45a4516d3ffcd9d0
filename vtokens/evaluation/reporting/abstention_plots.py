"""The plot of risk over coverage in a report."""

from collections.abc import Mapping

from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting.summary import Summary

_COLUMNS = 3


def draw(
  summary: Summary, styles: Mapping[tuple[str, str, str], tuple[str, str]]
) -> Figure | None:
  """Draws the curves of the main columns, with a panel for each dataset.

  Args:
    summary: summary of the results.
    styles: colour and line style by model, condition and table.

  Returns:
    The figure; None if no main column has a curve.
  """
  labels = columns_lib.main_labels(summary)
  found = [
    one
    for one in summary.abstentions
    if one.curve is not None and one.cell.column() in labels
  ]
  datasets = list(dict.fromkeys(one.cell.dataset for one in found))
  if not found:
    return None
  columns = min(_COLUMNS, len(datasets))
  rows = -(-len(datasets) // columns)
  figure = Figure(figsize=(10, 3.4 * rows), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  handles = {}
  for axes in panels[len(datasets) :]:
    axes.remove()
  for axes, dataset in zip(panels, datasets, strict=False):
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='0.9', lw=0.8)
    for one in found:
      if one.cell.dataset != dataset or one.curve is None:
        continue
      cell = one.cell
      color, line = styles[cell.model, cell.condition, cell.table]
      label = labels[cell.column()]
      [handles[label]] = axes.plot(
        one.curve.coverage, one.curve.risk, color=color, ls=line, lw=1.6
      )
    axes.set(
      title=dataset,
      xlim=(0, 100),
      ylim=(0, 100),
      xlabel='questions answered (%)',
      ylabel='of them wrong (%)',
    )
  figure.legend(
    handles.values(),
    handles,
    loc='outside upper center',
    ncols=min(5, len(handles)),
    frameon=False,
  )
  return figure
