r"""Trains virtual tokens: `python -m vtokens.train --config configs/x.py`.

Any setting can be overridden: `--config.optim.learning_rate=3e-3`.
`vtokens/config.py` documents the fields, docs/training.md what they do. The
same command continues a run that was stopped or killed.
"""

import dataclasses
import functools
import math
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler
from vtokens.data.batch import Batch
from vtokens.data.records import Record
from vtokens.devices import chips, distributed, partitioning
from vtokens.evaluation.asking import run_scores, sample_answers
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.asking.test_scores import TestScores
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import (
  callable_module,
  pypi_files,
  stopping,
  versions,
  writers,
)
from vtokens.method import kinds, optim, steps
from vtokens.method.steps import TrainState
from vtokens.method.trainable import Trainable, Values
from vtokens.models import quantize
from vtokens.models.abstract import num_params
from vtokens.models.frozen_base import BaseKeeper, FrozenBase
from vtokens.models.kernels import chosen
from vtokens.models.rope import regime
from vtokens.planning import flops
from vtokens.run import (
  loop_hooks,
  run_identity,
  run_inputs,
  run_summary,
  step_log,
  tracking,
  training_state,
  workdir,
)
from vtokens.run.checkpoints import Checkpoints
from vtokens.run.loop import Hook, Loop
from vtokens.run.run_inputs import RunInputs
from vtokens.run.workdir import RecordedClaim, RunDir
from vtokens.serving import trained_file
from vtokens.settings import flags


def train(
  cfg: config.Config,
  stop: stopping.StopRequest,
  bases: BaseKeeper | None = None,
) -> dict[str, Any]:
  """Runs or continues a run: scores the base, trains, scores the tokens.

  Args:
    cfg: a validated config.
    stop: a request that ends the run early, its state saved.
    bases: keeps the base for the next run of this process.

  Returns:
    The content of summary.json.

  Raises:
    errors.UserError: bad input, or a loss that is not finite.
    stopping.Stopped: the run was asked to stop.
  """
  with distributed.sole_writer(cfg.workdir):
    distributed.check_shared(cfg.workdir)
    return _train(cfg, stop, bases or BaseKeeper())


def train_until(
  cfg: config.Config,
  stop: stopping.StopRequest,
  step: int,
  bases: BaseKeeper,
) -> None:
  """Runs or continues a run up to a step, and saves its state there.

  The steps are those of `train`, which can continue the run. Nothing is scored
  but the validations, and no table is written.

  Args:
    cfg: a validated config.
    stop: a request that ends the run early, its state saved.
    step: a multiple of `train.validate_every`, or `train.num_steps`.
    bases: keeps the base for the next run of this process.

  Raises:
    errors.UserError: bad input.
    loop.DivergedError: a loss that is not finite.
    stopping.Stopped: the run was asked to stop.
  """
  with distributed.sole_writer(cfg.workdir):
    distributed.check_shared(cfg.workdir)
    run_dir = RunDir(cfg.workdir)
    inputs = run_inputs.open_inputs(cfg, run_dir, stop, bases)
    if distributed.from_first(run_dir.read_summary) is None:
      run = _prepare(cfg, run_dir, inputs, stop, bases)
      _run_loop(cfg, run, stop, step)


def _train(
  cfg: config.Config, stop: stopping.StopRequest, bases: BaseKeeper
) -> dict[str, Any]:
  began = time.monotonic()
  run_dir = RunDir(cfg.workdir)

  # Open.
  inputs = run_inputs.open_inputs(cfg, run_dir, stop, bases)
  finished = distributed.from_first(run_dir.read_summary)
  if finished is not None:
    if inputs.moved and distributed.is_first():
      # Evaluations and exports read there where the base is now.
      run_dir.claim(RecordedClaim(settings=run_identity.to_dict(cfg)))
    writers.say(f'{run_dir.path} holds the finished run')
    return finished

  # Prepare.
  run = _prepare(cfg, run_dir, inputs, stop, bases)
  untrained = run.tests.score_untrained(cfg.eval.conditions)

  # Train.
  trained = _run_loop(cfg, run, stop, cfg.train.num_steps)

  # Score and write.
  if distributed.is_first():
    run_dir.write_trained(
      cfg.virtual_tokens.kind,
      trained.values,
      {
        'base': cfg.base.path,
        **run.identity,
        'quantize': cfg.base.quantize,
        'step': trained.step,
        'position': cfg.virtual_tokens.position,
        'num_virtual_tokens': trained_file.count(trained.values),
        'versions': versions.packages(),
      },
    )
  by_k = run.tests.score_tokens(
    run.as_tokens(trained.values), cfg.eval.num_active
  )
  summary = {
    **run_summary.combine_scores(untrained, by_k),
    'steps': cfg.train.num_steps,
    'train_seconds': trained.seconds,
    'total_seconds': trained.seconds_before + time.monotonic() - began,
    'peak_rss_gib': run_summary.peak_rss_gib(),
    'base_fingerprint': run.base.fingerprint,
    'quantize': run.base.quantize,
    f'{cfg.virtual_tokens.kind}_sha256': trained_file.sha256(trained.values),
  }
  if distributed.is_first():
    run_summary.write(run_dir, summary)
  return summary


@dataclasses.dataclass(frozen=True, eq=False)
class _PreparedRun:
  """All that training needs.

  Attributes:
    mesh: the devices.
    base: the frozen model.
    assembler: puts examples together.
    batches: of the training data.
    validation: records to validate with.
    trainable: what is trained.
    refuses: whether it is trained to refuse.
    optimizer: of its values.
    initial: the state before the first step.
    evaluator: asks questions.
    tests: scores on the test questions.
    identity: of the base; see `workdir.base_identity`.
    teacher: what the teacher's values are, and the values, on the devices; None
      without a teacher that has values of its own.
  """

  mesh: jax.sharding.Mesh
  base: FrozenBase
  assembler: Assembler
  batches: pipeline.TrainBatches
  validation: Sequence[Record]
  trainable: Trainable
  refuses: bool
  optimizer: optax.GradientTransformation
  initial: steps.TrainState
  evaluator: Evaluator
  tests: TestScores
  identity: dict[str, str]
  teacher: tuple[Trainable, Values] | None

  def as_tokens(self, values: Values) -> TrainedTokens:
    """Trained values as the evaluator takes them."""
    return TrainedTokens(
      'table', values, self.assembler, self.trainable, self.refuses
    )


def _prepare(
  cfg: config.Config,
  run_dir: RunDir,
  inputs: RunInputs,
  stop: stopping.StopRequest,
  bases: BaseKeeper,
) -> _PreparedRun:
  """Tokenises, loads the base, checks that all fits, claims the directory."""
  assembler = Assembler.for_run(inputs.base.tokenizer, cfg)
  mixture = run_inputs.open_mixture(cfg, run_dir, inputs, assembler, stop)
  stop.check()
  base = stop.run(lambda: bases.load(inputs.base, inputs.mesh))
  stop.check()
  _describe(cfg, base, inputs, sum(mixture.sizes))
  prompter = Prompter(assembler, cfg.eval, cfg.seed)
  answerer = Answerer(base, inputs.mesh, cfg.eval, cfg.seed)
  evaluator = Evaluator(answerer, prompter, stop)
  optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
  rows = run_inputs.batch_rows(cfg)
  run = _PreparedRun(
    mesh=inputs.mesh,
    base=base,
    assembler=assembler,
    batches=pipeline.TrainBatches(
      mixture,
      cfg.data,
      cfg.virtual_tokens,
      assembler,
      base.config.vocab_size,
      cfg.seed,
      partitioning.local_rows(inputs.mesh, rows),
      cfg.train.distill,
      inputs.teacher.inputs if inputs.teacher else None,
    ),
    validation=inputs.validation,
    trainable=kinds.trainable_of(cfg.virtual_tokens),
    refuses=cfg.data.refuses,
    optimizer=optimizer,
    initial=training_state.initial_state(
      cfg, inputs.mesh, base, optimizer, mixture=mixture
    ),
    evaluator=evaluator,
    tests=TestScores(
      run_dir, evaluator, inputs.test, assembler, cfg.eval.retriever
    ),
    identity=workdir.base_identity(inputs.base),
    teacher=_load_teacher(inputs),
  )
  initial = run.as_tokens(training_state.fetch_trained(run.initial))
  most = tokens_variant(initial, max(cfg.eval.num_active))
  bare = [bare_variant(name) for name in cfg.eval.conditions]
  stop.run(lambda: prompter.check_fits(run.validation, [most], answers=True))
  stop.run(lambda: prompter.check_fits(inputs.test, [*bare, most]))
  # Only now: after a mistake found above, the directory is still free.
  if distributed.is_first():
    run_dir.claim(inputs.claim(cfg))
  return run


def _load_teacher(inputs: RunInputs) -> tuple[Trainable, Values] | None:
  """Puts the values of a teacher that has its own on all devices."""
  teacher = inputs.teacher
  if teacher is None or teacher.trainable is None:
    return None
  where = partitioning.replicated(inputs.mesh)
  return teacher.trainable, jax.device_put(teacher.values, where)


def _describe(
  cfg: config.Config, base: FrozenBase, inputs: RunInputs, num_examples: int
) -> None:
  """Prints what is trained, on what."""
  tokens = cfg.virtual_tokens
  shapes = kinds.trainable_of(tokens).shapes(tokens, base.config)
  numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  what = {'table': 'table', 'kv': 'keys and values'}[tokens.kind]
  kept = ''
  if base.quantize != 'none':
    kept = f', {quantize.describe(base.quantize)}'
  writers.say(
    f'base: {pypi_files.without_hash(cfg.base.path)}, '
    f'{num_params(base.config):,} parameters, frozen'
    f'{kept}\n'
    f'{what}: {tokens.num_virtual_tokens} virtual tokens x '
    f'{numbers // tokens.num_virtual_tokens:,} = {numbers:,} parameters, '
    'trained\n'
    f'data: {num_examples:,} training, {len(inputs.validation):,} validation, '
    f'{len(inputs.test):,} test questions'
  )
  dtype = jnp.dtype(cfg.base.dtype)
  attention = chosen.describe(base.config, dtype, inputs.mesh)
  if attention:
    writers.say(f'attention: {attention}')
  for rope in dict.fromkeys(kind.rope for kind in base.config.layer_pattern):
    line = rope and regime(rope, cfg.context_length)
    if line:
      writers.say(line)


@dataclasses.dataclass(frozen=True, eq=False)
class _Trained:
  """What the loop ends with.

  Attributes:
    values: of the best validation, or of the last step if there is none.
    step: their step.
    seconds: time in the loop, over all processes of the run.
    seconds_before: of them, those of earlier processes.
  """

  values: Values
  step: int
  seconds: float
  seconds_before: float


def _run_loop(
  cfg: config.Config,
  run: _PreparedRun,
  stop: stopping.StopRequest,
  last: int,
) -> _Trained:
  """Trains from where the checkpoints left off to the step `last`."""
  checkpoints = Checkpoints(
    cfg.workdir,
    cfg.train.keep_checkpoints,
    {**run.identity, 'config': run_identity.to_dict(cfg)},
  )
  state, progress = loop_hooks.resume(checkpoints, run.initial)
  seconds_before = progress.train_seconds
  log = step_log.StepLog(
    cfg.train,
    _step_cost(cfg, run),
    _open_tracker(cfg, int(state.step), progress.validated_step),
    progress,
    int(state.step),
  )
  hooks: list[Hook] = [log, _profile(cfg)]
  if run.validation:
    hooks.append(
      loop_hooks.Validation(
        functools.partial(_validate, run, max(cfg.eval.num_active)),
        cfg.train.validate_every,
        log,
        progress,
        checkpoints,
      )
    )
  hooks += [
    loop_hooks.Saving(checkpoints, cfg.train.checkpoint_every, log, progress),
    loop_hooks.StopIfAsked(stop),
  ]
  train_step = steps.jit_train_step(
    run.base.graph,
    run.optimizer,
    state,
    cfg.train,
    run.trainable,
    teacher=None if run.teacher is None else run.teacher[0],
  )
  taught_by = () if run.teacher is None else run.teacher[1:]

  def step_fn(
    state: TrainState, batch: Batch
  ) -> tuple[TrainState, dict[str, Any]]:
    batch = partitioning.shard_batch(batch, run.mesh, run.batches.batch_rows)
    done: tuple[TrainState, dict[str, Any]] = train_step(
      state, run.base.params, batch, *taught_by
    )
    return done

  loop = Loop(step_fn, state, run.batches, hooks)
  loop.run(last)
  seconds = log.train_seconds()
  values, step = loop_hooks.best_values(checkpoints, loop.state)
  checkpoints.close()
  return _Trained(values, step, seconds, seconds_before)


def _step_cost(cfg: config.Config, run: _PreparedRun) -> step_log.StepCost:
  chip = chips.find(jax.devices()[0].device_kind)
  return step_log.StepCost(
    flops=functools.partial(flops.train_flops, run.base.config),
    peak_flops=None if chip is None else chip.flops * run.mesh.size,
    learning_rates=step_log.learning_rates(
      optim.make_schedule(cfg.optim, cfg.train.num_steps), cfg.train.num_steps
    ),
  )


def _open_tracker(
  cfg: config.Config, step: int, validated: int
) -> tracking.Tracker:
  if not distributed.is_first():
    return tracking.Tracker([])
  settings = run_identity.to_dict(cfg)
  return tracking.open_tracker(
    cfg.workdir, cfg.tracking, settings, step, validated
  )


def _profile(cfg: config.Config) -> tracking.Profile:
  traced = cfg.tracking.profile_steps if distributed.is_first() else (0, 0)
  return tracking.Profile(epath.Path(cfg.workdir) / 'profile', traced)


def _validate(
  run: _PreparedRun, num_active: int, values: Values
) -> loop_hooks.ValidationResult:
  loss, answers = run.evaluator.validate(
    run.validation, run.as_tokens(values), num_active
  )
  form = AnswerTexts.of(
    run.assembler.encoder.templates, run.assembler.in_chat(None)
  )
  return loop_hooks.ValidationResult(
    loss,
    run_scores.scores_of(run.validation, answers, form),
    num_active,
    run_scores.refusals_of(run.validation, answers, form),
  )


def from_program(cfg: config.Config) -> dict[str, Any]:
  """Trains as the command does: `vtokens.train(config)`.

  An interrupt (Ctrl-C) saves the state and raises `stopping.Stopped`. The same
  call continues the run.

  Args:
    cfg: the settings; they are checked.

  Returns:
    The content of summary.json.

  Raises:
    errors.UserError: bad input, or a loss that is not finite.
    stopping.Stopped: the run was interrupted.
  """
  config.validate(cfg)
  with distributed.session(cfg.distributed):
    with stopping.in_program() as stop:
      return train(cfg, stop)


def main(cfg: config.Config) -> None:
  """Entry point."""
  with distributed.session(cfg.distributed):
    among, may_leave = distributed.AnyProcess(), distributed.may_leave()
    with stopping.StopRequest(among, may_leave=may_leave) as stop:
      summary = train(cfg, stop)
    run_summary.report(summary, cfg.workdir)
    _report_next(summary, cfg.workdir)


def _report_next(summary: dict[str, Any], workdir: str) -> None:
  """Prints the answers to a test question, and two commands to try."""
  number = max(map(int, summary['k']), default=0)
  if sample := sample_answers.describe(workdir, number):
    writers.say(f'\n{sample}')
  directory = shlex.quote(workdir)
  writers.say(
    '\ntry next:\n'
    f'  python -m vtokens.ask --workdir {directory} --compare --question "When '
    'was the tower completed?" --passage "The Elizabeth Tower, completed in '
    '1859, houses Big Ben."\n'
    f'  python -m vtokens.serve --workdir {directory}  (needs the extra serve)'
  )


callable_module.make_callable(__name__, from_program)

if __name__ == '__main__':
  flags.run_config(
    main, config.Config, config.validate, 'configs/quickstart.py'
  )
