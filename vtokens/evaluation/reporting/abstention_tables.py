"""Tables of confidence, refusals and citations in a report."""

import math
from collections.abc import Sequence

from vtokens.evaluation.asking.cells import Cell
from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting.abstention import Abstention
from vtokens.evaluation.reporting.report_tables import ReportTable
from vtokens.evaluation.reporting.summary import Summary

# EM that a bias of refusals may cost, in points.
_LOST = (0.0, 1.0, 2.0, math.inf)


def refusals_table(summary: Summary, *, main: bool) -> ReportTable | None:
  """Scores of refusals, for the datasets with unanswerable questions.

  Args:
    summary: summary of the results.
    main: whether to show the main columns alone, or all others.

  Returns:
    The table; None if it has no row.
  """
  mains = summary.main_columns
  em = {one.cell: one.metrics['em'].mean for one in summary.cells}
  labels = _labels(summary)
  rows = [
    (
      one.cell.dataset,
      labels[one.cell.column()],
      f'{scores.precision:.1f}',
      f'{scores.recall:.1f}',
      f'{scores.f1:.1f}',
      f'{em[one.cell]:.1f}',
      f'{scores.refused:,}',
      f'{scores.unanswerable:,}',
      f'{scores.n:,}',
    )
    for one in summary.abstentions
    if (scores := one.refusals) and (one.cell.column() in mains) == main
  ]
  if not rows:
    return None
  return ReportTable(
    'Refusals' if main else 'Refusals, other columns',
    (
      'dataset',
      'condition',
      'precision',
      'recall',
      'F1',
      'EM',
      'refused',
      'unanswerable',
      'n',
    ),
    tuple(rows),
    2,
    'Of refusals: share of the refused questions that are unanswerable, share '
    'of the unanswerable questions that were refused, and F1 of the two. EM is '
    'of the questions with an answer, where a refusal is wrong.',
  )


def refusal_bias_table(summary: Summary) -> ReportTable | None:
  """The best F1 of refusals by the EM that it may cost; None without curves."""
  labels = _labels(summary)
  rows = [
    (
      labels[column],
      f'{lost:g}' if math.isfinite(lost) else 'any',
      f'{curve.bias[at]:+.4f}',
      f'{curve.precision[at]:.1f}',
      f'{curve.recall[at]:.1f}',
      f'{curve.f1[at]:.1f}',
      f'{curve.em[at]:.1f}',
    )
    for column, curve in summary.refusal_curves.items()
    for lost in _LOST
    for at in [curve.best(lost)]
  ]
  if not rows:
    return None
  return ReportTable(
    'Refusals by bias',
    ('condition', 'EM lost', 'bias', 'precision', 'recall', 'F1', 'EM'),
    tuple(rows),
    1,
    'Over the questions of all datasets: the value of decode.refusal_bias with '
    'the highest F1 of refusals among those that cost at most so much EM, '
    'compared with the bias of this evaluation. Scores at a bias that was '
    'chosen on the same questions are too good: choose it on others. Biases '
    'below that of this evaluation are not in the table.',
  )


def confidence_table(summary: Summary) -> ReportTable:
  """Mean confidence of all cells, and the area under coverage and risk."""
  labels = _labels(summary)
  return ReportTable(
    'Confidence',
    ('dataset', 'condition', 'confidence', 'risk area', 'risk at 50 %', 'n'),
    tuple(
      (
        one.cell.dataset,
        labels[one.cell.column()],
        *_numbers(one),
        f'{one.n:,}',
      )
      for one in summary.abstentions
    ),
    2,
    'confidence: mean log-probability of the tokens of an answer, on average. '
    'risk area: share of wrong answers among the most confident ones, averaged '
    'over how many of them are shown. risk at 50 %: that share if half of the '
    'questions get an answer. none: an earlier version of vtokens, which did '
    'not compute it, wrote some of the answers.',
  )


def citations_table(summary: Summary) -> ReportTable | None:
  """Scores of citations; None if no answer has any."""
  labels = _labels(summary)
  rows = [
    (
      cell.dataset,
      labels[cell.column()],
      f'{scores.precision:.1f}',
      f'{scores.recall:.1f}',
      f'{scores.f1:.1f}',
      f'{scores.cited:,}',
      f'{scores.citable:,}',
    )
    for cell, scores in summary.citations.items()
  ]
  if not rows:
    return None
  return ReportTable(
    'Citations',
    ('dataset', 'condition', 'precision', 'recall', 'F1', 'cited', 'citable'),
    tuple(rows),
    2,
    'precision: share of the citations that name a passage with the answer. '
    'recall: share of the questions with such a passage among those shown '
    '(citable) whose answer names one.',
  )


def _numbers(one: Abstention) -> tuple[str, str, str]:
  if one.confidence is None:
    return 'none', 'none', 'none'
  half = ''
  if one.curve is not None:
    reached = one.curve.risk[one.curve.coverage >= 50]
    half = f'{reached[0]:.1f}' if len(reached) else ''
  area = '' if one.curve is None else f'{one.curve.area:.1f}'
  return f'{one.confidence:.3f}', area, half


def _labels(summary: Summary) -> dict[Cell, str]:
  columns: Sequence[Cell] = summary.columns
  return dict(zip(columns, columns_lib.labels(columns), strict=True))
