"""What is exported, and how it is checked."""

import dataclasses

from vtokens.settings import schema

NAMES = '[ref{i}]'
FORMATS = ('vtokens', 'spring-pt', 'hf', 'hf-base', 'peft', 'gguf')


@dataclasses.dataclass
class Gate:
  """How an export is checked before it is put in its place.

  Attributes:
    questions: real ones whose greedy answers must be ours.
    logits: of so many of them, the logits too.
    sampled: tokens drawn, none of which may be virtual.
    num_passages: most passages of a question; 0 for the run's
      eval.num_passages.
    max_new_tokens: of an answer; 0 for the run's eval.max_new_tokens.
    batch_size: questions that our own model answers at a time.
  """

  questions: int = 100
  logits: int = 8
  sampled: int = 1000
  num_passages: int = 0
  max_new_tokens: int = 0
  batch_size: int = 8


@dataclasses.dataclass
class Config:
  """What is exported.

  Attributes:
    workdir: of a finished run of vtokens.train, or what vtokens.import_table
      made.
    base: where the base is now, as config.base.path of training; empty for
      where the run's config says.
    names: of the virtual tokens where a format has names; {i} is 1, 2, ...
      Empty for those that an imported table had, or else [ref{i}], as SPRING's
      authors have it.
    data: sources of the questions that the export is checked with, as
      config.data.test of training; empty for the run's own test data.
    seed: of sampling.
    gate: see `Gate`.
  """

  workdir: str = schema.path()
  base: str = schema.path()
  names: str = ''
  data: tuple[str, ...] = schema.path(())
  seed: int = 0
  gate: Gate = dataclasses.field(default_factory=Gate)


def validate(settings: Config) -> None:
  """Checks every field.

  Raises:
    errors.UserError: a field has a wrong type or value.
  """
  values, fail = schema.check(
    settings,
    {},
    positive=('gate.questions', 'gate.sampled', 'gate.batch_size'),
    not_negative=('seed', 'gate.num_passages', 'gate.max_new_tokens'),
    most={
      'seed': schema.MOST_SEED,
      'gate.num_passages': schema.MOST_PASSAGES,
      'gate.batch_size': schema.MOST_ROWS,
      # They are drawn in memory, from two models.
      'gate.sampled': 10_000_000,
    },
  )
  if not values['workdir']:
    fail('workdir', 'to be set')
  if not 1 <= values['gate.logits'] <= values['gate.questions']:
    fail('gate.logits', 'a number from 1 to gate.questions')
  name = values['names'] or NAMES
  try:
    different = name.format(i=1) != name.format(i=2)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError):
    different = False
  if not different or name != name.strip():
    fail('names', 'a text with {i} in it, without spaces around it')
