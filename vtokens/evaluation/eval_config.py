"""Settings of `python -m vtokens.evaluate`."""

import dataclasses
import functools
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AfterValidator

from vtokens import config
from vtokens.evaluation import answer_rules
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.tasks import Task, check_task
from vtokens.settings import schema
from vtokens.settings.field_types import (
  MOST_ROWS,
  Name,
  NaturalInt,
  NumPassages,
  OnBadRecord,
  OnUnanswerable,
  Path,
  PositiveInt,
  Seed,
  TextBytes,
  Turns,
)

# Not a way to ask: proof that the model without tokens is the base.
UNTOUCHED = 'untouched'


def _check_reference(name: str) -> str:
  if name not in CONDITIONS:
    raise ValueError(f'one of {", ".join(CONDITIONS)}')
  return name


def _check_condition(name: str) -> str:
  if name != UNTOUCHED and name not in CONDITIONS:
    raise ValueError(f'some of {", ".join((*CONDITIONS, UNTOUCHED))}')
  return name


@dataclasses.dataclass
class Data(schema.Section):
  """Questions.

  Attributes:
    sources: of records, as in `config.Data.train`. Results are grouped by
      dataset; docs/data.md says how datasets get their names.
    corpus: files of passages, for sources that name passages by id only.
    turns: of a conversation; see `config.Data`.
    on_bad_record: see `config.Data`.
    max_text_bytes: a longer text makes a record bad.
    max_questions: of each dataset, drawn by the seed; 0 for all.
    rules: how a dataset's answers are compared, by its name; text if not given.
      See docs/evaluation.md.
    max_prefix_tokens: passages are cut to this length.
    max_suffix_tokens: most tokens of virtual tokens and question, never cut.
    unanswerable: questions whose source says that they have no answer are left
      out and counted (skip), stop the evaluation (error), or are asked, and
      right only if refused (refuse); see docs/evaluation.md.
  """

  sources: tuple[Path, ...] = ()
  corpus: tuple[Path, ...] = ()
  turns: Turns = 'first'
  on_bad_record: OnBadRecord = 'error'
  max_text_bytes: TextBytes = 1 << 20
  max_questions: NaturalInt = 0
  rules: dict[Name, answer_rules.Rule] = dataclasses.field(default_factory=dict)
  max_prefix_tokens: PositiveInt = 1280
  max_suffix_tokens: PositiveInt = 256
  unanswerable: OnUnanswerable = 'skip'


@dataclasses.dataclass
class Cost(schema.Section):
  """Cost of answers, measured on this machine beside the scores.

  Attributes:
    questions: timed together, and one of them alone; 0 for no measurement.
    repeats: of each, after one that is not counted; the median is reported.
  """

  # They are timed in one batch.
  questions: Annotated[int, Ge(0), Le(MOST_ROWS)] = 0
  repeats: Annotated[int, Ge(1), Le(10_000)] = 3


@dataclasses.dataclass
class Report(schema.Section):
  """How results are summed up.

  Attributes:
    reference: the condition that others are compared with, if it is asked.
    char_f1: also report what the paper's F1 probably is; see
      docs/evaluation.md. Not comparable with token F1.
    resamples: of the bootstrap, for 95 % intervals.
    permutations: of the paired test.
    page_questions: most questions listed on the HTML page.
  """

  reference: Annotated[str, AfterValidator(_check_reference)] = 'prompt'
  char_f1: bool = False
  resamples: Annotated[int, Ge(1), Le(1_000_000)] = 2000
  permutations: Annotated[int, Ge(1), Le(10_000_000)] = 10_000
  # A page of a million is a file of a GB.
  page_questions: Annotated[int, Ge(0), Le(1_000_000)] = 2000


@dataclasses.dataclass
class Config(schema.Section):
  """An evaluation.

  The first value of an axis (num_active, num_passages, retrievers) is its main
  one. The other values are evaluated with the other axes at their main values.

  Attributes:
    workdir: directory for everything that is written, also gs://. Cells that
      are finished there are not computed again.
    seed: of sampling, of the choice and order of passages and questions, and of
      resampling.
    runs: work directories of `vtokens.train`. Each table is evaluated on the
      base that it was trained on.
    base: the base. An empty `path`, `dtype` or `quantize` is that of the runs
      (without runs, quantize=none). The base may be quantised in another way
      than in training.
    templates: for conditions without virtual tokens. Conditions with tokens use
      the templates of their run.
    data: the questions.
    conditions: what is compared; see docs/evaluation.md. May be empty if there
      are tasks.
    num_active: numbers of virtual tokens (k); empty for all that a table has.
    num_passages: numbers of passages; 0 asks without any.
    retrievers: whose passages are shown; '' for the only one of the records.
    shuffle_passages: show them in an order drawn for each question.
    product: evaluate every combination of the axes' values.
    decode: how answers are generated.
    cost: of answers.
    tasks: general tasks without passages, by name; see docs/evaluation.md.
    report: how results are summed up.
    mesh: the devices.
    distributed: the processes.
  """

  workdir: Path = ''
  seed: Seed = 0
  runs: tuple[Path, ...] = ()
  base: config.Base = dataclasses.field(
    default_factory=lambda: config.Base(dtype='', quantize='')
  )
  templates: config.Templates = dataclasses.field(
    default_factory=config.Templates
  )
  data: Data = dataclasses.field(default_factory=Data)
  conditions: tuple[Annotated[str, AfterValidator(_check_condition)], ...] = (
    'closed_book',
    'concat',
    'prompt',
    'tokens',
  )
  num_active: tuple[PositiveInt, ...] = ()
  num_passages: tuple[NumPassages, ...] = (3,)
  retrievers: tuple[str, ...] = ('',)
  shuffle_passages: bool = False
  product: bool = False
  decode: config.Decode = dataclasses.field(default_factory=config.Decode)
  cost: Cost = dataclasses.field(default_factory=Cost)
  tasks: dict[Name, Task] = dataclasses.field(default_factory=dict)
  report: Report = dataclasses.field(default_factory=Report)
  mesh: config.Mesh = dataclasses.field(default_factory=config.Mesh)
  distributed: config.Distributed = dataclasses.field(
    default_factory=config.Distributed
  )

  @property
  def context_length(self) -> int:
    """Longest sequence that the evaluation can make, in tokens."""
    return (
      self.data.max_prefix_tokens
      + self.data.max_suffix_tokens
      + self.decode.max_new_tokens
    )


def validate(settings: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value, or two do not fit.
  """
  schema.check(settings)
  refuse = functools.partial(schema.refuse, settings)
  if not settings.workdir:
    refuse('workdir', 'to be set')
  if not settings.runs:
    if not settings.base.path:
      refuse('runs', 'a work directory of vtokens.train, or config.base.path')
    if not settings.base.dtype:
      refuse('base.dtype', 'float32 or bfloat16, since there are no runs')
  if not settings.conditions and not settings.tasks:
    refuse('conditions', 'at least one, since there are no tasks')
  for name in settings.conditions:
    if name != UNTOUCHED and CONDITIONS[name].tokens and not settings.runs:
      refuse('runs', f'a trained run, for the condition {name}')
  for field in ('conditions', 'num_active', 'num_passages', 'retrievers'):
    values = getattr(settings, field)
    if len(set(values)) < len(values):
      refuse(field, 'each value once')
  if not settings.num_passages:
    refuse('num_passages', 'at least one value')
  if not settings.retrievers:
    refuse('retrievers', 'at least one value')
  for name, task in settings.tasks.items():
    check_task(name, task)
    if task.num_active and not settings.runs:
      refuse('runs', f'a trained run, for the virtual tokens of tasks[{name}]')
  if set(settings.conditions) - {UNTOUCHED} and not settings.data.sources:
    refuse('data.sources', 'to be set')
