"""Opens the teacher of a run; see `config.Distill`."""

import dataclasses

from vtokens import config
from vtokens.data import teaching
from vtokens.data.prompt_encoder import as_ids
from vtokens.host import errors
from vtokens.method import kinds
from vtokens.method.trainable import Trainable, Values
from vtokens.models.frozen_base import OpenBase
from vtokens.run.workdir import FinishedRun, RunDir

_FIELD = 'config.train.distill'
# Settings that decide the text around virtual tokens.
_TEMPLATES = (
  'passage',
  'after_passages',
  'prompt',
  'chat',
)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTeacher:
  """A teacher with a pass of its own.

  Attributes:
    inputs: what it sees.
    trainable: what its values are; None if it has those being trained.
    values: its values, numpy arrays; None likewise.
  """

  inputs: teaching.Teacher
  trainable: Trainable | None = None
  values: Values | None = None


def read_run(settings: config.Distill) -> FinishedRun | None:
  """Reads the run that teaches, if there is one.

  Raises:
    errors.UserError: there is no such run, or a file of it is damaged.
  """
  if not settings.weight or settings.tokens != 'run':
    return None
  return RunDir(settings.run).read(f'{_FIELD}.run')


def open_teacher(cfg: config.Config, base: OpenBase) -> OpenTeacher | None:
  """Opens the teacher of a run; None if it is a draw, or there is none.

  Args:
    cfg: of the run.
    base: its base.

  Raises:
    errors.UserError: the teacher's run is of another base, or of other
      templates or another position, or its tokens are too many.
  """
  settings, tokens = cfg.train.distill, cfg.virtual_tokens
  if not settings.weight:
    return None
  gold = settings.passages == 'gold'
  in_suffix = kinds.trainable_of(tokens).in_suffix
  teacher: OpenTeacher | None = None
  if settings.tokens == 'text':
    text = as_ids(base.tokenizer.encode(settings.text))
    teacher = OpenTeacher(teaching.Teacher(gold, 0, text, in_suffix=in_suffix))
  elif found := read_run(settings):
    _check(found, cfg, base)
    trainable = kinds.trainable_of(found.config.virtual_tokens)
    inputs = teaching.Teacher(
      gold, found.num_trained, in_suffix=trainable.in_suffix
    )
    teacher = OpenTeacher(inputs, trainable, found.values)
  elif gold or not tokens.always_all:
    inputs = teaching.Teacher(
      gold,
      # Others are never trained.
      tokens.num_active
      if tokens.draw == 'fixed'
      else tokens.num_virtual_tokens,
      in_suffix=in_suffix,
    )
    teacher = OpenTeacher(inputs)
  if teacher is not None:
    most = tokens.num_virtual_tokens + cfg.eval.max_new_tokens
    if teacher.inputs.num_tokens > most:
      raise errors.UserError(
        f'{_FIELD}.{settings.tokens}: the teacher has '
        f'{teacher.inputs.num_tokens} tokens, expected at most {most}: '
        'config.virtual_tokens.num_virtual_tokens and '
        'config.eval.max_new_tokens together'
      )
  return teacher


def _check(found: FinishedRun, cfg: config.Config, base: OpenBase) -> None:
  """Raises a `UserError` if the run's tokens fit other prompts than these."""
  found.check_base(base, tokenizer=True)
  theirs, ours = found.config, cfg
  answer = 'chat_answer' if ours.templates.chat else 'answer'
  compared = [
    (f'templates.{name}', getattr(theirs.templates, name), value)
    for name in (*_TEMPLATES, answer)
    for value in [getattr(ours.templates, name)]
  ]
  compared.append(
    (
      'virtual_tokens.position',
      theirs.virtual_tokens.position,
      ours.virtual_tokens.position,
    )
  )
  for name, there, here in compared:
    if there != here:
      raise errors.UserError(
        f'{found.field}: {found.directory.path} was trained with '
        f'config.{name}={there!r}, expected {here!r} as in this run'
      )
