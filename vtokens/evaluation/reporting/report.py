"""Writes results for programs, for papers and for people."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation.asking.cells import Cell, CellResult, Results
from vtokens.evaluation.reporting import (
  columns,
  page,
  report_plots,
  report_tables,
  summary,
)
from vtokens.evaluation.reporting.report_tables import ReportTable
from vtokens.host import json_files, markdown, paths, writers

# A name of a file longer than this is cut.
_NAME = 120


def write_report(
  directory: epath.PathLike,
  results: Results,
  *,
  settings: dict[str, Any],
  versions: dict[str, Any],
  cost: dict[str, Any] | None,
  general: dict[str, Any] | None,
  resamples: int,
  permutations: int,
  seed: int,
  reference: str,
  page_questions: int,
) -> dict[str, Any]:
  """Writes predictions/, plots/, report.md, report.html and report.json.

  Each file is written whole or not at all, report.json last. What an earlier
  report in this directory wrote, by its report.json, and this one does not, is
  removed.

  Args:
    directory: where to; made if it is not there.
    results: of the evaluation, with at least one cell.
    settings: of the evaluation, a JSON object.
    versions: of programs and data, a JSON object.
    cost: measurements of time, a JSON object, if there are any.
    general: of general ability, likewise.
    resamples: of the bootstrap, for each interval.
    permutations: of each paired test.
    seed: of both.
    reference: the condition that others are compared with.
    page_questions: most questions in report.html.

  Returns:
    The content of report.json: see `summary.summarize`, and `settings`,
    `versions`, `cost`, `general` and `files`.
  """
  directory = epath.Path(directory)
  earlier = read_earlier(directory)
  found = summary.summarize(
    results,
    resamples=resamples,
    permutations=permutations,
    seed=seed,
    reference=reference,
  )
  pictures = report_plots.draw(found)
  main = [*report_tables.main_tables(found), *report_tables.axis_tables(found)]
  more = _more_tables(found, cost, general)
  about = {'settings': settings, 'versions': versions}
  predictions = _write_predictions(directory, results)
  texts = {
    'report.md': _markdown(found, main, more, pictures, versions),
    'report.html': page.render(
      found,
      results,
      main_tables=main,
      more_tables=more,
      pictures=pictures,
      settings=about,
      max_questions=page_questions,
    ),
  }
  for name, text in texts.items():
    writers.write_text(directory / name, text)
  plots = {f'plots/{name}.png': png for name, (_, png) in pictures.items()}
  for name, png in plots.items():
    writers.write_bytes(directory / name, png)
  files = sorted([*predictions, *texts, *plots])
  _remove_old(directory, earlier, files)
  content = found | about | {'cost': cost, 'general': general, 'files': files}
  writers.write_json(directory / 'report.json', content)
  return content


def format_console(found: dict[str, Any]) -> str:
  """The main columns as a short table, and the tests against the reference.

  Args:
    found: of `summary.summarize`.
  """
  mains = columns.mains(found)
  names = dict(
    zip(map(columns.key_of, mains), columns.labels(mains), strict=True)
  )
  several = len(found['datasets']) > 1
  rows = []
  for column in mains:
    entry = columns.find(found, column, columns.AVERAGE)
    name = names[columns.key_of(column)]
    if entry is not None:
      rows.append((name, entry))
      continue
    # Not asked everywhere, so without an average.
    for dataset in found['datasets']:
      entry = columns.find(found, column, dataset)
      if entry is not None:
        rows.append((f'{name}, {dataset}', entry))
  title = next(iter(found['datasets']))
  if several:
    title = f'average of {len(found["datasets"])} datasets'
  width = max([len(title), *[len(name) for name, _ in rows]])
  lines = [
    f'{title:<{width}}     EM   95 % interval     F1  tokens  ended       n'
  ]
  for name, entry in rows:
    em, f1 = entry['metrics']['em'], entry['metrics']['f1']
    low, high = em['interval']
    lines.append(
      f'{name:<{width}}  {em["mean"]:5.1f}  [{low:5.1f}, {high:5.1f}]'
      f'  {f1["mean"]:5.1f}  {entry["mean_tokens"]:6.1f}'
      f'  {entry["stop"]["end"]:3.0f} %  {entry["n"]:6,}'
    )
  for comparison in found['comparisons']:
    if (
      not comparison['dataset']
      and comparison['b']['condition'] == found['reference']
    ):
      a, b = (names[columns.key_of(comparison[side])] for side in 'ab')
      value = comparison['metrics']['em']
      low, high = value['interval']
      p = report_tables.p_text(value['p_value'])
      lines.append(
        f'{a} - {b}: EM {value["difference"]:+.1f} [{low:+.1f}, {high:+.1f}], '
        f'p {report_tables.p_equals(p)}'
      )
  return '\n'.join(lines)


def _more_tables(
  found: dict[str, Any],
  cost: dict[str, Any] | None,
  general: dict[str, Any] | None,
) -> list[ReportTable]:
  more = [report_tables.comparisons_table(found)]
  if cost:
    more += report_tables.generic_tables('Cost', cost)
  if general:
    more += report_tables.generic_tables('General ability', general)
  return [
    table for table in (*more, report_tables.details_table(found)) if table
  ]


def _markdown(
  found: dict[str, Any],
  main: Sequence[ReportTable],
  more: Sequence[ReportTable],
  pictures: Mapping[str, tuple[str, bytes]],
  versions: dict[str, Any],
) -> str:
  counts = ', '.join(
    f'{markdown.text(name)} {n:,}' for name, n in found['datasets'].items()
  )
  sampling = found['statistics']
  parts = [
    '# Evaluation',
    f'Questions: {counts}. EM and F1 (SQuAD 1.1) in percent, as EM/F1; Avg '
    'gives every dataset the same weight. What was not asked is left out.',
  ]
  for table in main:
    parts += _section(table)
  for name, (text, _) in pictures.items():
    parts += [f'![{markdown.text(text)}](plots/{name}.png)']
  for table in more:
    parts += _section(table)
  parts += ['## Conditions']
  parts += [
    '\n'.join(f'- `{k}`: {text}' for k, text in found['conditions'].items())
  ]
  parts += ['## Versions and seeds']
  told = {k: v for k, v in versions.items() if not isinstance(v, (dict, list))}
  told |= {key: sampling[key] for key in ('resamples', 'permutations', 'seed')}
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
  """Writes a file for each cell; returns their names."""
  files = []
  for cell, name in cell_names(results.cells).items():
    files.append(f'predictions/{name}.jsonl')
    text = _predictions(results.records[cell.dataset], results.cells[cell])
    writers.write_text(directory / files[-1], text)
  return files


def _predictions(records: Sequence[Record], result: CellResult) -> str:
  cell, lines = result.cell, []
  for i, (record, answer) in enumerate(
    zip(records, result.answers, strict=True)
  ):
    passages = record.ranked(cell.retriever) if answer.shown else ()
    row = {
      'id': record.id,
      'dataset': record.dataset,
      'question': record.question,
      'prediction': answer.text,
      'answers': record.answers,
      **{name: float(values[i]) for name, values in result.values.items()},
      'num_tokens': answer.num_tokens,
      'stop': answer.stop,
      'passages': [passages[rank].id for rank in answer.shown],
      'ranks': [rank + 1 for rank in answer.shown],
      'passages_dropped': answer.passages_dropped,
      'passages_cut': answer.passages_cut,
      **{key: getattr(cell, key) for key in columns.KEYS},
    }
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  return ''.join(lines)


def cell_names(cells: Iterable[Cell]) -> dict[Cell, str]:
  """A name of a file, without its ending, for each cell; all differ.

  It has the coordinates that apply, as far as file systems allow, else a hash
  of the cell besides.
  """
  cells = list(cells)
  names = {cell: _cell_name(cell) for cell in cells}
  taken = [name.lower() for name in names.values()]
  return {
    cell: name
    if taken.count(name.lower()) == 1
    else f'{name[: _NAME - 9]}.{_hash(cell)}'
    for cell, name in names.items()
  }


def _cell_name(cell: Cell) -> str:
  parts = [cell.dataset, cell.model, cell.condition]
  if cell.table:
    parts += [cell.table, f'k{cell.num_active}']
  parts += [f'm{cell.num_passages}', *[cell.retriever] * bool(cell.retriever)]
  text = '.'.join(parts)
  name = re.sub(r'[^\w.+=-]', '_', text, flags=re.ASCII).lstrip('.')
  if name == text and len(name) <= _NAME:
    return name
  return f'{name[: _NAME - 9]}.{_hash(cell)}'


def _hash(cell: Cell) -> str:
  return hashlib.sha256(repr(cell).encode()).hexdigest()[:8]


def read_earlier(directory: epath.PathLike) -> list[str]:
  """The files of an earlier report in a directory, if there is one.

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
  """Removes pictures and predictions of an earlier report here."""
  for name in sorted(set(earlier) - set(files)):
    # Only what a report can have written.
    if re.fullmatch(r'(plots/[^/]+\.png|predictions/[^/]+\.jsonl)', name):
      (directory / name).unlink(missing_ok=True)
