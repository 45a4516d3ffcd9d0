r"""Trains virtual tokens: `python -m vtokens.train --config configs/x.py`.

Any setting can be overridden: `--config.optim.learning_rate=3e-3`; fields are
documented in `vtokens/config.py`. The same command continues a run that was
stopped or killed.
"""

import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from vtokens import config
from vtokens.data import pipeline, records, training_set
from vtokens.data.assemble import Assembler
from vtokens.devices import chips, distributed, partitioning
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  PromptVariant,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.conditions import TokenTable
from vtokens.host import (
  errors,
  json_diff,
  json_files,
  paths,
  plots,
  stopping,
  versions,
  writers,
)
from vtokens.method import optim, steps, virtual_tokens
from vtokens.models import frozen_base, rope
from vtokens.models.decoder import num_params
from vtokens.planning import abstract_step, flops
from vtokens.run import run_identity, tracking
from vtokens.run.checkpoints import Checkpoints
from vtokens.run.loop import Loop
from vtokens.serving import table_file
from vtokens.settings import flags

# Of JSON files of a run that are read again.
_SCORES = {'em': float, 'f1': float, 'n': int}
_SUMMARY = {
  'conditions': {str: _SCORES},
  'k': {str: {'em': float, 'f1': float}},
  'steps': int,
  'train_seconds': float,
  'total_seconds': float,
  'peak_rss_gib': float,
}
_LOST = (
  'it says what the run is: put it back, or choose another --config.workdir'
)


def train(cfg: config.Config, stop: stopping.StopRequest) -> dict[str, Any]:
  """Runs or continues a run: scores the base, trains, scores the tokens.

  Args:
    cfg: a validated config.
    stop: a request that ends the run early, its state saved.

  Returns:
    The content of summary.json.

  Raises:
    errors.UserError: bad input, or a loss that is not finite.
    stopping.Stopped: the run was asked to stop.
  """
  with distributed.sole_writer(cfg.workdir):
    distributed.check_shared(cfg.workdir)
    return _train(cfg, stop)


def _train(cfg: config.Config, stop: stopping.StopRequest) -> dict[str, Any]:
  began = time.monotonic()
  workdir = epath.Path(cfg.workdir)
  claimed = _read_if_there(workdir / 'config.json', dict, _LOST)
  blocking, moved = (
    ([], []) if claimed is None else run_identity.compare(claimed, cfg)
  )
  _refuse(workdir, 'another config', blocking)
  report = training_set.bad_records(cfg.data)
  held_out = [
    stop.run(
      functools.partial(training_set.read_held_out, cfg, field, most, report)
    )
    for field, most in (
      ('validation', cfg.eval.max_validation),
      ('test', cfg.eval.max_test),
    )
  ]
  validation_set, test_set = (part.records for part in held_out)
  hashes = stop.run(lambda: run_identity.content(cfg, held_out))
  claimed_data = _read_if_there(workdir / 'data.json', dict, _LOST)
  if claimed_data is not None:
    _refuse(
      workdir,
      'other data',
      run_identity.compare_content(claimed_data, hashes, cfg),
    )
  mesh = partitioning.make_mesh(cfg.mesh.shape)
  batch_rows = cfg.data.batch_size // cfg.data.examples_per_row
  partitioning.check_batch(mesh, batch_rows // cfg.train.accumulation_steps)
  stop.check()
  # Whatever is wrong should show before the long work of tokenising, and that
  # before the weights are loaded.
  opened = stop.run(lambda: frozen_base.open_base(cfg.base, cfg.context_length))
  virtual_tokens.check_init(cfg.virtual_tokens, opened.config.embed_dim)
  identity = {
    'fingerprint': opened.fingerprint,
    'tokenizer_sha256': opened.tokenizer.sha256,
  }
  claimed_base = _read_if_there(workdir / 'base.json', {str: str}, _LOST)
  if claimed_base is not None:
    lines = json_diff.diff(claimed_base, identity, 'base.')
    _refuse(workdir, 'another base', lines)
  for line in moved:
    writers.say(f'{line}; the content is the same')
  _check_base(cfg, opened)
  finished = _read_if_there(
    workdir / 'summary.json',
    _SUMMARY,
    'delete it to have the table scored again',
  )
  if finished is not None:
    if moved and distributed.is_first():
      # Where the base is now is what evaluations and exports read there.
      writers.write_json(workdir / 'config.json', run_identity.to_dict(cfg))
    writers.say(f'{workdir} holds the finished run')
    return finished
  assembler = Assembler.for_run(opened.tokenizer, cfg)
  mixture, left_out = stop.run(
    lambda: training_set.open_training_set(
      cfg, assembler, held_out, writers.say, stop.check
    )
  )
  hashes['datasets'] = list(mixture.names)
  named = (claimed_data or {}).get('datasets', hashes['datasets'])
  if named != hashes['datasets']:
    _refuse(
      workdir,
      'other data',
      [
        f'data sets of config.data.train: {named} there, '
        f'{hashes["datasets"]} now; they are called after the files'
      ],
    )
  for note, count in report.notes.items():
    writers.say(f'validation and test data: {count:,} {note}')
  _report_left_out(cfg, [*left_out, *report.messages])
  stop.check()
  base = stop.run(lambda: opened.load(mesh))
  stop.check()
  rows = cfg.virtual_tokens.num_virtual_tokens
  kept = '' if base.quantize == 'none' else f', matrices in {base.quantize}'
  writers.say(
    f'base: {cfg.base.path}, {num_params(base.config):,} parameters, frozen'
    f'{kept}\n'
    f'table: {rows} virtual tokens x {base.config.embed_dim} = '
    f'{rows * base.config.embed_dim:,} parameters, trained\n'
    f'data: {sum(mixture.sizes):,} training, {len(validation_set):,} '
    f'validation, {len(test_set):,} test questions'
  )
  for used in dict.fromkeys(kind.rope for kind in base.config.layer_pattern):
    regime = used and rope.regime(used, cfg.context_length)
    if regime:
      writers.say(regime)
  prompter = Prompter(assembler, cfg.eval, cfg.seed)
  answerer = Answerer(base, mesh, cfg.eval, cfg.seed)
  evaluator = Evaluator(answerer, prompter, stop)

  def as_table(rows: np.ndarray) -> TokenTable:
    return TokenTable('table', rows, assembler)

  optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
  state = _initial_state(cfg, mesh, base, optimizer)
  bare = [bare_variant(name) for name in cfg.eval.conditions]
  initial = as_table(distributed.fetch(state.table))
  most = tokens_variant(initial, max(cfg.eval.num_active))
  stop.run(lambda: prompter.check_fits(validation_set, [most], answers=True))
  stop.run(lambda: prompter.check_fits(test_set, [*bare, most]))
  # Only now: a mistake found above may be mended in the same directory.
  if distributed.is_first():
    writers.write_json(workdir / 'config.json', run_identity.to_dict(cfg))
    writers.write_json(workdir / 'data.json', hashes)
    writers.write_json(workdir / 'base.json', identity)
  checkpoints = Checkpoints(
    workdir,
    cfg.train.keep_checkpoints,
    {**identity, 'config': run_identity.to_dict(cfg)},
  )

  untrained = _score_untrained(cfg, evaluator, test_set, bare)
  loop = _make_loop(
    cfg,
    mesh,
    base,
    optimizer,
    state,
    evaluator,
    pipeline.TrainBatches(
      mixture,
      cfg.data,
      cfg.virtual_tokens,
      assembler,
      base.config.vocab_size,
      cfg.seed,
      partitioning.local_rows(mesh, batch_rows),
    ),
    validation_set,
    as_table,
    checkpoints,
    stop,
  )
  loop.run()
  best = checkpoints.restore_best(loop.state)
  checkpoints.close()
  chosen = loop.state if best is None else best[0]
  table = distributed.fetch(chosen.table)
  if distributed.is_first():
    table_file.save(
      workdir / 'table.safetensors',
      table,
      {
        'base': cfg.base.path,
        **identity,
        'quantize': cfg.base.quantize,
        'step': int(chosen.step),
        'position': cfg.virtual_tokens.position,
        'num_virtual_tokens': rows,
        'versions': versions.packages(),
      },
    )
  by_k = _score_tokens(cfg, evaluator, test_set, as_table(table))
  tokens = {'tokens': by_k[max(by_k)]} if by_k else {}
  summary = {
    'conditions': {**untrained, **tokens},
    'k': {
      str(k): {'em': values['em'], 'f1': values['f1']}
      for k, values in by_k.items()
    },
    'steps': loop.step,
    'train_seconds': loop.seconds,
    'total_seconds': loop.seconds_before + time.monotonic() - began,
    'peak_rss_gib': _peak_rss_gib(),
    'base_fingerprint': base.fingerprint,
    'quantize': base.quantize,
    'table_sha256': table_file.sha256(table),
  }
  if distributed.is_first():
    plots.plot_run(
      workdir / 'training.png',
      tracking.read_metrics(workdir / 'metrics.jsonl'),
      summary,
    )
    # Last: it says that the run is finished.
    writers.write_json(workdir / 'summary.json', summary)
  return summary


def _read_if_there(path: epath.Path, shape: Any, advice: str = '') -> Any:
  """Content of a JSON file, or None; the first process decides.

  Args:
    path: the file.
    shape: what it has to hold; see `json_files`.
    advice: what to do if it does not.
  """
  return distributed.from_first(
    lambda: json_files.read(path, shape, advice) if paths.exists(path) else None
  )


def _refuse(workdir: epath.Path, what: str, lines: Sequence[str]) -> None:
  """Raises if a work directory holds another run.

  Args:
    workdir: of the run.
    what: it holds.
    lines: how that differs; none if it does not.

  Raises:
    errors.UserError: there are such lines.
  """
  if lines:
    raise errors.UserError(
      f'{workdir} holds a run of {what}:\n  '
      + '\n  '.join(lines)
      + '\nchoose another --config.workdir, or repeat the same command to '
      'continue that run'
    )


def _report_left_out(cfg: config.Config, messages: Sequence[str]) -> None:
  """Says how many bad records were left out; a file has them all."""
  path = epath.Path(cfg.workdir) / 'skipped_records.txt'
  if messages:
    writers.say(
      f'skipped {len(messages)} bad records, listed in {path}; the first: '
      f'{messages[0]}'
    )
  if distributed.is_first() and (messages or path.exists()):
    writers.write_text(path, ''.join(f'{line}\n' for line in messages))


def _check_base(cfg: config.Config, base: frozen_base.OpenBase) -> None:
  """Raises if the base cannot do what the config asks of it."""
  if cfg.context_length > base.config.longest_sequence:
    raise errors.UserError(
      'config.data.max_prefix_tokens, max_suffix_tokens and '
      'config.eval.max_new_tokens together make '
      f'{cfg.context_length} tokens, more than the '
      f'{base.config.longest_sequence} that {cfg.base.path} was trained for'
    )
  if base.tokenizer.has_chat_template:
    return
  if 'chat_prompt' in cfg.eval.conditions:
    raise errors.UserError(
      f'config.eval.conditions: {cfg.base.path} has no chat template; leave '
      'out chat_prompt'
    )
  if cfg.templates.chat:
    raise errors.UserError(
      f'config.templates.chat: {cfg.base.path} has no chat template; leave it '
      'False'
    )


def _initial_state(
  cfg: config.Config,
  mesh: jax.sharding.Mesh,
  base: frozen_base.FrozenBase,
  optimizer: optax.GradientTransformation,
) -> steps.TrainState:
  """The state before the first step, every leaf a global array."""
  rows = virtual_tokens.initial_table(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, cfg.seed
  )
  shapes = abstract_step.state(optimizer, rows.shape, mesh)
  where = jax.tree.map(lambda x: x.sharding, shapes)
  table = jax.device_put(rows, where.table)
  return steps.TrainState(
    table=table,
    opt_state=jax.jit(optimizer.init, out_shardings=where.opt_state)(table),
    step=jax.device_put(jnp.zeros((), jnp.int32), where.step),
  )


def _make_loop(
  cfg: config.Config,
  mesh: jax.sharding.Mesh,
  base: frozen_base.FrozenBase,
  optimizer: optax.GradientTransformation,
  state: steps.TrainState,
  evaluator: Evaluator,
  batches: pipeline.TrainBatches,
  validation: Sequence[records.Record],
  as_table: Callable[[np.ndarray], TokenTable],
  checkpoints: Checkpoints,
  stop: stopping.StopRequest,
) -> Loop:
  chip = chips.find(jax.devices()[0].device_kind)
  return Loop(
    settings=cfg.train,
    train_step=steps.jit_train_step(base.graph, optimizer, state, cfg.train),
    base=base.params,
    state=state,
    mesh=mesh,
    batches=batches,
    schedule=optim.make_schedule(cfg.optim, cfg.train.num_steps),
    evaluator=evaluator,
    validation=validation,
    as_table=as_table,
    num_active=max(cfg.eval.num_active),
    checkpoints=checkpoints,
    tracker=lambda step, validated: (
      tracking.open_tracker(
        cfg.workdir,
        cfg.tracking,
        run_identity.to_dict(cfg),
        step,
        validated,
      )
      if distributed.is_first()
      else tracking.Tracker([])
    ),
    profile=tracking.Profile(
      epath.Path(cfg.workdir) / 'profile',
      cfg.tracking.profile_steps if distributed.is_first() else (0, 0),
    ),
    flops=functools.partial(flops.train_flops, base.config),
    peak_flops=None if chip is None else chip.flops * mesh.size,
    stop=stop,
  )


def _score_untrained(
  cfg: config.Config,
  evaluator: Evaluator,
  test: Sequence[records.Record],
  arms: Sequence[PromptVariant],
) -> dict[str, dict[str, Any]]:
  """Scores of the base as it is; kept, so that a restart need not repeat."""
  path = epath.Path(cfg.workdir) / 'untrained.json'
  found = _read_if_there(
    path, {str: _SCORES}, 'delete it to have the base scored again'
  )
  if found is None:
    found = _score(cfg, evaluator, test, arms, 'untrained')
    if distributed.is_first():
      writers.write_json(path, found)
  if found:
    writers.say(run_scores.format_scores('before training', found))
  return found


def _score_tokens(
  cfg: config.Config,
  evaluator: Evaluator,
  test: Sequence[records.Record],
  table: TokenTable,
) -> dict[int, dict[str, Any]]:
  arms = {k: tokens_variant(table, k) for k in sorted(set(cfg.eval.num_active))}
  found = _score(cfg, evaluator, test, list(arms.values()), 'virtual tokens')
  return {k: found[arm.name] for k, arm in arms.items() if arm.name in found}


def _score(
  cfg: config.Config,
  evaluator: Evaluator,
  test: Sequence[records.Record],
  arms: Sequence[PromptVariant],
  label: str,
) -> dict[str, dict[str, Any]]:
  """Answers the test questions, writes predictions, returns EM and F1."""
  if not test or not arms:
    return {}
  found = {}
  for name, answers in evaluator.answers(test, arms, label=label).items():
    if distributed.is_first():
      run_scores.write_predictions(
        epath.Path(cfg.workdir) / 'predictions' / f'{name}.jsonl',
        test,
        answers,
      )
    found[name] = run_scores.scores_of(test, answers).as_dict()
  return found


def _peak_rss_gib() -> float:
  """Largest resident memory of this process so far, in GiB."""
  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == 'darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * unit / 2**30


def _report(summary: dict[str, Any], workdir: str) -> None:
  untrained = dict(summary['conditions'])
  untrained.pop('tokens', None)
  by_k = {
    f'tokens, k={k}': {**values, 'n': summary['conditions']['tokens']['n']}
    for k, values in summary['k'].items()
  }
  if by_k:
    writers.say(run_scores.format_scores('result', {**untrained, **by_k}))
  writers.say(
    f'{summary["steps"]} steps in {summary["train_seconds"]:.0f} s, '
    f'{summary["total_seconds"]:.0f} s in all, peak memory '
    f'{summary["peak_rss_gib"]:.1f} GiB\n'
    f'written to {workdir}: table.safetensors, summary.json, training.png, '
    'metrics.jsonl, predictions/'
  )


def main(cfg: config.Config) -> None:
  """Entry point."""
  with distributed.session(cfg.distributed):
    among, may_leave = distributed.AnyProcess(), distributed.may_leave()
    with stopping.StopRequest(among, may_leave=may_leave) as stop:
      summary = train(cfg, stop)
    _report(summary, cfg.workdir)


if __name__ == '__main__':
  flags.run_config(
    main, config.Config, config.validate, 'configs/quickstart.py'
  )
