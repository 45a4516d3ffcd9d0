r"""Evaluates virtual tokens: quality and cost, compared with other conditions.

    python -m vtokens.evaluate --config configs/eval/x.py \
      --config.workdir=runs/evaluation

`vtokens/evaluation/eval_config.py` documents the fields. docs/evaluation.md
documents measures and output files. The same command continues an evaluation
that was stopped or killed; it generates no answer twice.
"""

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import flags as absl_flags
from etils import epath

from vtokens.data.records import Record
from vtokens.devices import distributed, partitioning
from vtokens.evaluation import answer_rules, eval_config, untouched
from vtokens.evaluation.asking import (
  cell_plan,
  cost,
  evaluated_models,
  questions,
)
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.cells import Answer, Cell, CellResult, Results
from vtokens.evaluation.asking.grid import Grid
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.eval_config import UNTOUCHED, Config
from vtokens.evaluation.harness import general_rows
from vtokens.evaluation.reporting import report
from vtokens.evaluation.reporting.summary import Resampling
from vtokens.host import callable_module, stopping, versions, writers
from vtokens.models import quantize
from vtokens.settings import flags, schema

if TYPE_CHECKING:
  from vtokens.evaluation.harness.prepared_tasks import PreparedTask


def evaluate(cfg: Config, stop: stopping.StopRequest) -> dict[str, Any]:
  """Runs or continues an evaluation.

  Args:
    cfg: a validated config.
    stop: ends the evaluation early if requested; answers so far are kept.

  Returns:
    The content of report.json; or of general.json if only `untouched` and
    tasks were requested. Empty on all processes but the first.

  Raises:
    errors.UserError: bad input, or the base has changed.
  """
  runs = evaluated_models.read_runs(cfg.runs)
  opened = stop.run(lambda: evaluated_models.open_models(cfg, runs))
  records = stop.run(lambda: questions.read(cfg, writers.say))
  # Errors should appear before the weights are loaded.
  grids = {}
  for model in opened:
    grid = Grid(
      cfg, model, cell_plan.groups(cfg, model, list(records)), records
    )
    stop.run(grid.check)
    grids[model.name] = grid
  prepared = stop.run(lambda: _prepare_tasks(cfg, opened))
  mesh = partitioning.make_mesh(cfg.mesh.shape)
  with distributed.sole_writer(cfg.workdir):
    # Before answers are computed that could not be reported.
    distributed.from_first(lambda: report.read_earlier(cfg.workdir))
    for grid in grids.values():
      grid.open()
    costs: list[dict[str, Any]] = []
    abilities: dict[str, list[dict[str, Any]]] = {}
    for model in opened:
      found = _run(cfg, model, prepared, grids[model.name], mesh, stop)
      costs += found.pop('cost', [])
      for name, rows in found.items():
        abilities.setdefault(name, []).extend(rows)
    if not distributed.is_first():
      return {}
    used = {**versions.packages(), **_versions(opened, runs)}
    if not records:
      content = {
        **abilities,
        'settings': schema.to_dict(cfg),
        'versions': used,
      }
      writers.write_json(epath.Path(cfg.workdir) / 'general.json', content)
      return content
    answered: dict[Cell, list[Answer]] = {}
    for grid in grids.values():
      answered |= grid.results()
    summary, content = report.write_report(
      cfg.workdir,
      _results(cfg, opened, records, answered),
      report.ReportContext(
        settings=schema.to_dict(cfg),
        versions=used,
        cost={'device': cost.device(), 'rows': costs} if costs else None,
        general=abilities or None,
      ),
      Resampling(cfg.report.resamples, cfg.report.permutations, cfg.seed),
      reference=cfg.report.reference,
      page_questions=cfg.report.page_questions,
    )
    writers.say(report.format_console(summary))
    return content


def _run(
  cfg: Config,
  model: evaluated_models.Model,
  prepared: Sequence['PreparedTask'],
  grid: Grid,
  mesh: jax.sharding.Mesh,
  stop: stopping.StopRequest,
) -> dict[str, list[dict[str, Any]]]:
  """Does everything that needs the weights of one base, then drops them.

  Returns:
    The requested rows for reports: cost, tasks, untouched.
  """
  prove = UNTOUCHED in cfg.conditions
  if not (grid.has_missing() or cfg.cost.questions or prepared or prove):
    return {}
  rows: dict[str, list[dict[str, Any]]] = {}
  base = stop.run(lambda: model.base.load(mesh))
  before = stop.run(lambda: untouched.observe(base)) if prove else None
  if grid.has_missing():
    grid.run(base, mesh, stop)
  if cfg.cost.questions:
    rows['cost'] = grid.measure(base, mesh, stop)
  if prepared:
    from vtokens.evaluation.harness import run_tasks

    rows |= run_tasks.run_tasks(
      base,
      mesh,
      prepared,
      model.tables,
      model=model.name,
      seed=cfg.seed,
      batch_size=cfg.decode.batch_size,
      resamples=cfg.report.resamples,
      directory=epath.Path(cfg.workdir) / 'general',
      stop=stop,
    )
  if prove:
    tables = list(model.tables.values())
    proof = stop.run(
      lambda: untouched.prove(
        lambda: model.base.load(mesh), base, tables, loaded=before, release=True
      )
    )
    if distributed.is_first():
      writers.write_json(
        epath.Path(cfg.workdir) / 'general' / model.name / 'untouched.json',
        proof,
      )
    rows['untouched'] = [
      {
        'tables used': len(tables),
        'quantize': proof['quantize'],
        'tensors': proof['weights']['tensors'],
        'parameters': proof['weights']['parameters'],
        'weights sha256': proof['weights']['sha256'],
        'probes': proof['logits']['probes'],
        'bit for bit the base': proof['untouched'],
      }
    ]
  if not distributed.is_first():
    # Only the first process may see files of finished work.
    return {}
  return {
    name: [{'model': model.name, **row} for row in part]
    for name, part in rows.items()
  }


def _prepare_tasks(
  cfg: Config, opened: Sequence[evaluated_models.Model]
) -> 'list[PreparedTask]':
  """Reads general tasks and checks that they fit the bases and tables."""
  if not cfg.tasks:
    return []
  # The extra `lm-eval` may not be installed.
  from vtokens.evaluation.harness import prepared_tasks

  found = [
    prepared_tasks.prepare(name, task, cfg.seed)
    for name, task in cfg.tasks.items()
  ]
  for model in opened:
    prepared_tasks.check_fits(model.base, found)
    prepared_tasks.check_tables(found, model.tables)
  return found


def _results(
  cfg: Config,
  opened: Sequence[evaluated_models.Model],
  records: Mapping[str, Sequence[Record]],
  answered: Mapping[Cell, Sequence[Answer]],
) -> Results:
  cells = {}
  assemblers = {
    (model.name, name): assembler
    for model in opened
    for name, assembler in (
      ('', model.assembler),
      *((name, table.assembler) for name, table in model.tables.items()),
    )
  }
  for cell, answers in answered.items():
    assembler = assemblers[cell.model, cell.table]
    form = AnswerTexts.of(
      assembler.encoder.templates,
      assembler.in_chat(CONDITIONS[cell.condition].chat),
    )
    asked, texts = records[cell.dataset], form.texts(answers)
    values = answer_rules.score_questions(
      cfg.data.rules.get(cell.dataset, 'text'),
      texts,
      [record.answers for record in asked],
      char_f1=cfg.report.char_f1,
    )
    cells[cell] = CellResult(
      cell,
      answers,
      values,
      np.array(form.refused(answers)),
      texts if form.cites else None,
      form.cited(answers) if form.cites else None,
      form.citation_scores(asked, answers, cell.retriever),
    )
  return Results(
    records=records,
    cells=cells,
    conditions=[name for name in cfg.conditions if name != UNTOUCHED],
    main=cell_plan.main_values(cfg, opened),
    refusal_bias=None if cfg.decode.temperature else cfg.decode.refusal_bias,
  )


def _versions(
  opened: Sequence[evaluated_models.Model],
  runs: Sequence[evaluated_models.EvaluatedRun],
) -> dict[str, Any]:
  """Versions that the numbers depend on, besides the settings."""
  found: dict[str, Any] = {
    'python': platform.python_version(),
    'device': cost.device(),
  }
  for model in opened:
    found[f'base {model.name}'] = model.base.fingerprint
    found[f'quantize, base {model.name}'] = model.base.settings.quantize
  for run in runs:
    found[f'table {run.name}'] = run.finished.sha256
    # The evaluated base may be quantised differently.
    found[f'quantize, when table {run.name} was trained'] = (
      run.finished.quantize
    )
  return found


def _prepare(cfg: Config) -> None:
  """Applies `--conditions` to the config and validates it."""
  if absl_flags.FLAGS.conditions is not None:
    cfg.conditions = tuple(absl_flags.FLAGS.conditions)
    if cfg.conditions == (UNTOUCHED,):
      cfg.data.sources = ()
  eval_config.validate(cfg)


def from_program(cfg: Config) -> dict[str, Any]:
  """Evaluates as the command does: `vtokens.evaluate(config)`.

  An interrupt (Ctrl-C) keeps the answers so far and raises `stopping.Stopped`.
  The same call continues the evaluation.

  Args:
    cfg: the settings; they are checked.

  Returns:
    See `evaluate`.

  Raises:
    errors.UserError: bad input, or the base has changed.
    stopping.Stopped: the evaluation was interrupted.
  """
  eval_config.validate(cfg)
  with distributed.session(cfg.distributed):
    with stopping.in_program() as stop:
      return evaluate(cfg, stop)


def main(cfg: Config) -> None:
  """Entry point."""
  with distributed.session(cfg.distributed):
    among, may_leave = distributed.AnyProcess(), distributed.may_leave()
    with stopping.StopRequest(among, may_leave=may_leave) as stop:
      found = evaluate(cfg, stop)
    if distributed.is_first():
      _say(cfg, found)


def _say(cfg: Config, found: dict[str, Any]) -> None:
  """Prints the results, on the first process."""
  abilities = found.get('general') or found
  if text := general_rows.format_results(abilities):
    writers.say(text)
  for row in abilities.get('untouched', ()):
    method = row['quantize']
    files = 'the files'
    if method != 'none':
      files += f', {quantize.describe(method)},'
    writers.say(
      f'{row["model"]}: untouched: {row["tensors"]} weight tensors and the '
      f'logits of {row["probes"]} texts are bit for bit those of {files} '
      f'after {row["tables used"]} tables were used; SHA-256 of all weights '
      f'{row["weights sha256"]}'
    )
  if 'files' in found:
    writers.say(
      f'written to {cfg.workdir}: report.html, report.md, report.json, plots/, '
      'predictions/'
    )
  else:
    writers.say(f'written to {cfg.workdir}: general.json, general/')


callable_module.make_callable(__name__, from_program)

if __name__ == '__main__':
  absl_flags.DEFINE_list(
    'conditions',
    None,
    'In place of config.conditions, e.g. untouched: proves that the model '
    'without tokens is the base.',
  )
  flags.run_config(main, Config, _prepare, 'configs/eval/quickstart.py')
