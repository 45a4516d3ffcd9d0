"""Settings of `python -m vtokens.export`."""

import dataclasses
import functools
from typing import Annotated

from annotated_types import Ge, Le

from vtokens.settings import schema
from vtokens.settings.field_types import (
  NaturalInt,
  NumPassages,
  Path,
  PositiveInt,
  Rows,
  Seed,
)

NAMES = '[ref{i}]'


@dataclasses.dataclass
class Gate(schema.Section):
  """How an export is checked before it is put in its place.

  Attributes:
    questions: whose greedy answers must equal those of vtokens' own model.
    logits: compare the logits too, for so many of the questions.
    sampled: tokens drawn, none of which may be virtual.
    num_passages: most passages of a question; 0 for the run's
      eval.num_passages.
    max_new_tokens: of an answer; 0 for the run's eval.max_new_tokens.
    batch_size: questions that vtokens' own model answers at a time.
  """

  questions: PositiveInt = 100
  logits: PositiveInt = 8
  # They are drawn in memory, from two models.
  sampled: Annotated[int, Ge(1), Le(10_000_000)] = 1000
  num_passages: NumPassages = 0
  max_new_tokens: NaturalInt = 0
  batch_size: Rows = 8


@dataclasses.dataclass
class Config(schema.Section):
  """What is exported.

  Attributes:
    workdir: of a finished run of vtokens.train, or of vtokens.import_table.
    base: where the base is now, as config.base.path of training; empty for
      the path in the run's config.
    names: of the virtual tokens, in formats with names; {i} is 1, 2, ...
      Empty for the names of an imported table, or else [ref{i}], as SPRING's
      authors have it.
    data: sources of questions that check the export, as config.data.test of
      training; empty for the run's own test data.
    seed: of sampling.
    gate: see `Gate`.
  """

  workdir: Path = ''
  base: Path = ''
  names: str = ''
  data: tuple[Path, ...] = ()
  seed: Seed = 0
  gate: Gate = dataclasses.field(default_factory=Gate)


def validate(settings: Config) -> None:
  """Checks every field.

  Raises:
    errors.UserError: a field has a wrong type or value.
  """
  schema.check(settings)
  refuse = functools.partial(schema.refuse, settings)
  if not settings.workdir:
    refuse('workdir', 'to be set')
  if settings.gate.logits > settings.gate.questions:
    refuse('gate.logits', 'at most gate.questions')
  name = settings.names or NAMES
  try:
    different = name.format(i=1) != name.format(i=2)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError):
    different = False
  if not different or name != name.strip():
    refuse('names', 'a text with {i} in it, without spaces around it')
