"""Writes the report of an evaluation, for programs, papers and people."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from vtokens.evaluation import predictions
from vtokens.evaluation.asking.cells import Results, file_names
from vtokens.evaluation.reporting import (
  abstention_tables,
  columns,
  page,
  report_plots,
  report_tables,
  summary,
)
from vtokens.evaluation.reporting.page import Exhibits
from vtokens.evaluation.reporting.report_tables import ReportTable
from vtokens.evaluation.reporting.summary import Resampling, Summary
from vtokens.host import json_files, markdown, paths, writers


@dataclasses.dataclass(frozen=True)
class ReportContext:
  """What a report tells besides the results, as JSON objects.

  Attributes:
    settings: settings of the evaluation.
    versions: versions of programs and data.
    cost: measurements of time, if any.
    general: measurements of general ability, if any.
  """

  settings: dict[str, Any]
  versions: dict[str, Any]
  cost: dict[str, Any] | None = None
  general: dict[str, Any] | None = None


def write_report(
  directory: epath.PathLike,
  results: Results,
  context: ReportContext,
  resampling: Resampling,
  *,
  reference: str,
  page_questions: int,
) -> tuple[Summary, dict[str, Any]]:
  """Writes predictions/, plots/, report.md, report.html and report.json.

  Each file is written whole or not at all, report.json last. Files that an
  earlier report wrote here, as its report.json lists them, are removed unless
  they were written again.

  Args:
    directory: where to; made if missing.
    results: results of the evaluation, with at least one cell.
    context: what the report tells besides.
    resampling: how uncertainty is estimated.
    reference: the condition that others are compared with.
    page_questions: most questions in report.html.

  Returns:
    The summary of the results, and the content of report.json.
  """
  directory = epath.Path(directory)
  earlier = read_earlier(directory)
  found = summary.summarize(results, resampling, reference)
  exhibits = Exhibits(
    main_tables=[
      *report_tables.main_tables(found),
      *report_tables.axis_tables(found),
      *filter(
        None,
        [
          abstention_tables.refusals_table(found, main=True),
          abstention_tables.refusal_bias_table(found),
          abstention_tables.citations_table(found),
        ],
      ),
    ],
    more_tables=_more_tables(found, context),
    pictures=report_plots.draw(found),
    about={'settings': context.settings, 'versions': context.versions},
  )
  written = _write_predictions(directory, results)
  texts = {
    'report.md': _markdown(found, exhibits, context.versions),
    'report.html': page.render(found, results, exhibits, page_questions),
  }
  for name, text in texts.items():
    writers.write_text(directory / name, text)
  plots = {
    f'plots/{name}.png': png for name, (_, png) in exhibits.pictures.items()
  }
  for name, png in plots.items():
    writers.write_bytes(directory / name, png)
  files = sorted([*written, *texts, *plots])
  _remove_old(directory, earlier, files)
  about = {'cost': context.cost, 'general': context.general, 'files': files}
  content = found.as_json() | exhibits.about | about
  writers.write_json(directory / 'report.json', content)
  return found, content


def format_console(found: Summary) -> str:
  """The main columns as a short table, and the tests against the reference."""
  names = columns.main_labels(found)
  several = len(found.datasets) > 1
  rows = []
  for column, name in names.items():
    average = columns.find(found, column, columns.AVERAGE)
    if average is not None:
      rows.append((name, average))
      continue
    # Without an average it was not asked of every dataset.
    for dataset in found.datasets:
      scores = columns.find(found, column, dataset)
      if scores is not None:
        rows.append((f'{name}, {dataset}', scores))
  title = next(iter(found.datasets))
  if several:
    title = f'average of {len(found.datasets)} datasets'
  width = max([len(title), *[len(name) for name, _ in rows]])
  lines = [
    f'{title:<{width}}     EM   95 % interval     F1  tokens  ended       n'
  ]
  for name, scores in rows:
    em, f1 = scores.metrics['em'], scores.metrics['f1']
    low, high = em.interval
    lines.append(
      f'{name:<{width}}  {em.mean:5.1f}  [{low:5.1f}, {high:5.1f}]'
      f'  {f1.mean:5.1f}  {scores.mean_tokens:6.1f}'
      f'  {scores.stop["end"]:3.0f} %  {scores.n:6,}'
    )
  for one in found.comparisons:
    if not one.dataset and one.b.condition == found.reference:
      difference = one.metrics['em']
      low, high = difference.estimate.interval
      p = report_tables.p_text(difference.p_value)
      lines.append(
        f'{names[one.a]} - {names[one.b]}: EM {difference.estimate.mean:+.1f} '
        f'[{low:+.1f}, {high:+.1f}], p {report_tables.p_equals(p)}'
      )
  return '\n'.join(lines)


def _more_tables(found: Summary, context: ReportContext) -> list[ReportTable]:
  more = [
    report_tables.comparisons_table(found),
    abstention_tables.refusals_table(found, main=False),
    abstention_tables.confidence_table(found),
  ]
  if context.cost:
    more += report_tables.generic_tables('Cost', context.cost)
  if context.general:
    more += report_tables.generic_tables('General ability', context.general)
  return [
    table for table in (*more, report_tables.details_table(found)) if table
  ]


def _markdown(
  found: Summary, exhibits: Exhibits, versions: dict[str, Any]
) -> str:
  counts = ', '.join(
    f'{markdown.text(name)} {n:,}' for name, n in found.datasets.items()
  )
  parts = [
    '# Evaluation',
    f'Questions: {counts}. EM and F1 (SQuAD 1.1) in percent, as EM/F1; Avg '
    'gives every dataset the same weight. What was not asked is left out.',
  ]
  for table in exhibits.main_tables:
    parts += _section(table)
  for name, (text, _) in exhibits.pictures.items():
    parts += [f'![{markdown.text(text)}](plots/{name}.png)']
  for table in exhibits.more_tables:
    parts += _section(table)
  parts += ['## Conditions']
  parts += [
    '\n'.join(f'- `{k}`: {text}' for k, text in found.conditions.items())
  ]
  parts += ['## Versions and seeds']
  told = {k: v for k, v in versions.items() if not isinstance(v, (dict, list))}
  told |= dataclasses.asdict(found.resampling)
  parts += [
    '\n'.join(
      f'- {key}: {markdown.text(str(value))}' for key, value in told.items()
    )
  ]
  parts += [
    'All settings, and all numbers without rounding, are in report.json; every '
    'prediction is in predictions/.'
  ]
  return '\n\n'.join(parts) + '\n'


def _section(table: ReportTable) -> list[str]:
  parts = [f'## {markdown.text(table.title)}', report_tables.to_markdown(table)]
  return [*parts, markdown.text(table.note)] if table.note else parts


def _write_predictions(directory: epath.Path, results: Results) -> list[str]:
  """Writes a file for each cell; returns the names of the files."""
  files = []
  for cell, name in file_names(list(results.cells)).items():
    files.append(f'predictions/{name}.jsonl')
    found = results.cells[cell]
    predictions.write(
      directory / files[-1],
      results.records[cell.dataset],
      found.answers,
      found.values,
      cell,
      found.refused,
      found.texts,
      found.cited,
    )
  return files


def read_earlier(directory: epath.PathLike) -> list[str]:
  """The files of an earlier report in a directory, if any.

  Raises:
    errors.UserError: its report.json is damaged.
  """
  path = epath.Path(directory) / 'report.json'
  if not paths.exists(path):
    return []
  advice = 'delete it to have the report written again'
  return list(json_files.read(path, {'files': [str]}, advice)['files'])


def _remove_old(
  directory: epath.Path, earlier: Sequence[str], files: Sequence[str]
) -> None:
  """Removes plots and predictions of an earlier report."""
  for name in sorted(set(earlier) - set(files)):
    # Remove nothing that a report cannot have written.
    if re.fullmatch(r'(plots/[^/]+\.png|predictions/[^/]+\.jsonl)', name):
      (directory / name).unlink(missing_ok=True)
