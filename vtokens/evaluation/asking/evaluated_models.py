"""The bases of an evaluation, and the tables trained on each."""

import dataclasses
import os
from collections.abc import Sequence

from vtokens import config
from vtokens.data.assemble import Assembler, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.evaluation.eval_config import Config
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.method import kinds
from vtokens.models import frozen_base
from vtokens.run.workdir import FinishedRun, RunDir


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedRun:
  """A finished run in an evaluation.

  Attributes:
    name: unique in the evaluation.
    finished: its table and settings.
  """

  name: str
  finished: FinishedRun


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A base and the tables trained on it.

  Attributes:
    name: unique in an evaluation.
    base: the base without its weights.
    assembler: for conditions without virtual tokens.
    tables: tables by name, with the assemblers of their runs.
  """

  name: str
  base: frozen_base.OpenBase
  assembler: Assembler
  tables: dict[str, TrainedTokens]


def read_runs(workdirs: Sequence[str]) -> list[EvaluatedRun]:
  """Reads the tables of finished runs.

  Args:
    workdirs: work directories of the runs.

  Raises:
    errors.UserError: there is no finished run, or a file of it is damaged.
  """
  return [
    EvaluatedRun(name, RunDir(path).read('config.runs'))
    for name, path in zip(unique_names(workdirs), workdirs, strict=True)
  ]


def open_models(cfg: Config, runs: Sequence[EvaluatedRun]) -> list[Model]:
  """Opens each base once.

  Args:
    cfg: settings of the evaluation.
    runs: the runs whose tables are used.

  Returns:
    The bases in the order of their first runs, or the one of config.base.

  Raises:
    errors.UserError: a base is not found, not supported, or not the one that
      a table was trained on; a table has too few rows; or there is a bias of
      refusals and no table was trained to refuse.
  """
  most = max(cfg.num_active, default=0)
  for run in runs:
    trained, rows = run.finished.num_trained, run.finished.count
    if most > trained:
      raise errors.UserError(
        f'config.num_active: {most} virtual tokens asked for, but '
        f'{run.name} has {trained}'
        + (' that were trained' if trained < rows else '')
      )
  if cfg.decode.refusal_bias and not any(
    run.finished.config.data.refuses for run in runs
  ):
    raise errors.UserError(
      f'config.decode.refusal_bias={cfg.decode.refusal_bias:g}: expected 0, '
      'since no run was trained to refuse (data.unanswerable=refuse)'
    )
  opened: dict[str, frozen_base.OpenBase] = {}
  settings = [_base_settings(cfg, run) for run in runs]
  alone = dataclasses.replace(cfg.base, quantize=cfg.base.quantize or 'none')
  for one in settings or [alone]:
    for field in ('dtype', 'quantize'):
      if one.path in opened and (
        getattr(opened[one.path].settings, field) != getattr(one, field)
      ):
        raise errors.UserError(
          f'config.runs: runs on {one.path} have different settings of '
          f'{field}; choose one by config.base.{field}'
        )
    if one.path not in opened:
      opened[one.path] = frozen_base.open_base(one, cfg.context_length)
      _check_length(cfg, opened[one.path])
  for run, one in zip(runs, settings, strict=True):
    run.finished.check_base(opened[one.path])
  models = []
  # Two runs may name one base by two paths.
  by_identity: dict[tuple[str, ...], frozen_base.OpenBase] = {}
  for base in opened.values():
    by_identity.setdefault(_identity(base), base)
  names = unique_names([base.settings.path for base in by_identity.values()])
  for name, (key, base) in zip(names, by_identity.items(), strict=True):
    models.append(
      Model(
        name=name,
        base=base,
        assembler=_assembler(cfg, base, cfg.templates),
        tables={
          run.name: _trained_tokens(cfg, base, run)
          for run, one in zip(runs, settings, strict=True)
          if _identity(opened[one.path]) == key
        },
      )
    )
  return models


def _identity(base: frozen_base.OpenBase) -> tuple[str, ...]:
  settings = base.settings
  return (
    base.fingerprint,
    base.tokenizer.sha256,
    settings.dtype,
    settings.quantize,
  )


def _base_settings(cfg: Config, run: EvaluatedRun) -> config.Base:
  return config.Base(
    path=cfg.base.path or run.finished.config.base.path,
    dtype=cfg.base.dtype or run.finished.config.base.dtype,
    quantize=cfg.base.quantize or run.finished.config.base.quantize,
    attention=cfg.base.attention,
    scan_layers=cfg.base.scan_layers,
  )


def _trained_tokens(
  cfg: Config, base: frozen_base.OpenBase, run: EvaluatedRun
) -> TrainedTokens:
  finished, tokens = run.finished, run.finished.config.virtual_tokens
  trainable = kinds.trainable_of(tokens)
  assembler = dataclasses.replace(
    _assembler(cfg, base, finished.config.templates),
    position=tokens.position,
    in_suffix=trainable.in_suffix,
  )
  # Virtual tokens that no step has trained are not used.
  values = trainable.first(finished.values, finished.num_trained)
  return TrainedTokens(
    run.name, values, assembler, trainable, finished.config.data.refuses
  )


def _assembler(
  cfg: Config, base: frozen_base.OpenBase, templates: config.Templates
) -> Assembler:
  return Assembler(
    encoder=PromptEncoder(base.tokenizer, templates),
    limits=Limits(
      prefix=cfg.data.max_prefix_tokens, suffix=cfg.data.max_suffix_tokens
    ),
  )


def _check_length(cfg: Config, base: frozen_base.OpenBase) -> None:
  if cfg.context_length > base.config.longest_sequence:
    raise errors.UserError(
      'config.data.max_prefix_tokens, max_suffix_tokens and '
      f'config.decode.max_new_tokens together make {cfg.context_length} '
      f'tokens, more than the {base.config.longest_sequence} that '
      f'{base.settings.path} was trained for'
    )


def unique_names(paths: Sequence[str]) -> list[str]:
  """The last parts of paths, as many as make them unique."""
  if not paths:
    return []
  # `.` and `..` are no names.
  parts = [
    (os.path.abspath(path) if os.path.exists(path) else path.rstrip('/')).split(
      '/'
    )
    for path in paths
  ]
  for size in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-size:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  raise errors.UserError(
    f'config.runs: {errors.several(paths)}: expected each only once'
  )
