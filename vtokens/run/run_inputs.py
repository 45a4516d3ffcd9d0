"""What a training run reads, compared with the run in its work directory."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vtokens import config
from vtokens.data import training_set
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import TrainingMixture
from vtokens.data.records import Record
from vtokens.devices import distributed, partitioning
from vtokens.host import errors, json_diff, stopping, writers
from vtokens.method import kinds
from vtokens.models import frozen_base
from vtokens.run import distillation, run_identity, workdir
from vtokens.run.workdir import RecordedClaim, RunDir


@dataclasses.dataclass(frozen=True, eq=False)
class RunInputs:
  """What a run reads, all but weights and training data.

  Attributes:
    mesh: the devices.
    base: the frozen model, its weights not loaded.
    held_out: validation and test data.
    report: bad records of all data.
    hashes: of the run's files, as data.json has them.
    recorded: what the work directory holds.
    moved: a line for each path that has changed; its content has not.
    teacher: of the run, if it has a pass of its own.
  """

  mesh: jax.sharding.Mesh
  base: frozen_base.OpenBase
  held_out: Sequence[training_set.HeldOut]
  report: BadRecords
  hashes: dict[str, Any]
  recorded: RecordedClaim
  moved: Sequence[str]
  teacher: distillation.OpenTeacher | None = None

  @property
  def validation(self) -> list[Record]:
    """Records that are scored while training."""
    return self.held_out[0].records

  @property
  def test(self) -> list[Record]:
    """Records that are scored before and after training."""
    return self.held_out[1].records

  def claim(self, cfg: config.Config) -> RecordedClaim:
    """What the run is, as the work directory keeps it."""
    return RecordedClaim(
      settings=run_identity.to_dict(cfg),
      data=self.hashes,
      base=workdir.base_identity(self.base),
    )


def batch_rows(cfg: config.Config) -> int:
  """Rows of a batch, over all processes."""
  return cfg.data.batch_size // cfg.data.examples_per_row


def open_inputs(
  cfg: config.Config,
  run_dir: RunDir,
  stop: stopping.StopRequest,
  bases: frozen_base.BaseKeeper,
) -> RunInputs:
  """Opens what a run reads; quick checks come before slow work.

  Args:
    cfg: of the run.
    run_dir: its work directory.
    stop: a request that ends the run early.
    bases: opens the base, or has it from an earlier run of this process.

  Raises:
    errors.UserError: bad input, or the directory holds another run.
    stopping.Stopped: the run was asked to stop.
  """
  recorded = RecordedClaim(**distributed.from_first(run_dir.read_claim))
  blocking, moved = (
    ([], [])
    if recorded.settings is None
    else run_identity.compare(recorded.settings, cfg)
  )
  run_dir.refuse('another config', blocking)
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
  hashes = stop.run(lambda: run_identity.content(cfg, held_out))
  if recorded.data is not None:
    run_dir.refuse(
      'other data', run_identity.compare_content(recorded.data, hashes, cfg)
    )
  mesh = partitioning.make_mesh(cfg.mesh.shape)
  partitioning.check_batch(
    mesh, batch_rows(cfg) // cfg.train.accumulation_steps
  )
  stop.check()
  base = stop.run(lambda: bases.open(cfg.base, cfg.context_length))
  tokens = cfg.virtual_tokens
  kinds.trainable_of(tokens).check(tokens, base.config)
  if recorded.base is not None:
    identity = workdir.base_identity(base)
    run_dir.refuse(
      'another base', json_diff.diff(recorded.base, identity, 'base.')
    )
  for line in moved:
    writers.say(f'{line}; the content is the same')
  _check_base(cfg, base)
  teacher = distillation.open_teacher(cfg, base)
  return RunInputs(
    mesh, base, held_out, report, hashes, recorded, moved, teacher
  )


def _check_base(cfg: config.Config, base: frozen_base.OpenBase) -> None:
  """Raises a `UserError` if the base cannot do what the config asks for."""
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
      f'config.eval.conditions: {cfg.base.path} has no chat template; remove '
      'chat_prompt'
    )
  if cfg.templates.chat:
    raise errors.UserError(
      f'config.templates.chat: {cfg.base.path} has no chat template; set it '
      'to False'
    )


def open_mixture(
  cfg: config.Config,
  run_dir: RunDir,
  inputs: RunInputs,
  assembler: Assembler,
  stop: stopping.StopRequest,
) -> TrainingMixture:
  """Tokenises the training data, or finds them tokenised.

  Args:
    cfg: of the run.
    run_dir: its work directory.
    inputs: the rest of what the run reads; the names of data sets are added to
      its hashes.
    assembler: with the limits of the run.
    stop: a request that ends the run early.

  Raises:
    errors.UserError: bad data, or data sets with other names than before.
    stopping.Stopped: the run was asked to stop.
  """
  mixture, left_out = stop.run(
    lambda: training_set.open_training_set(
      cfg, assembler, inputs.held_out, writers.say, stop.check
    )
  )
  names = list(mixture.names)
  before = (inputs.recorded.data or {}).get('datasets', names)
  if before != names:
    run_dir.refuse(
      'other data',
      [
        f'data sets of config.data.train: {before} there, {names} now; they '
        'have the names of their files'
      ],
    )
  inputs.hashes['datasets'] = names
  for note, count in inputs.report.notes.items():
    writers.say(f'validation and test data: {count:,} {note}')
  _report_left_out(
    run_dir.path / 'skipped_records.txt', [*left_out, *inputs.report.messages]
  )
  return mixture


def _report_left_out(path: epath.Path, messages: Sequence[str]) -> None:
  """Says how many bad records were left out, and lists them in a file."""
  if messages:
    writers.say(
      f'skipped {len(messages)} bad records, listed in {path}; the first: '
      f'{messages[0]}'
    )
  if distributed.is_first() and (messages or path.exists()):
    writers.write_text(path, ''.join(f'{line}\n' for line in messages))
