"""Settings of `python -m vtokens.evaluate`."""

import dataclasses

from vtokens import config
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.tasks import Task, check_task
from vtokens.scoring import answer_rules as rules
from vtokens.settings import config_checks, schema

# Not a way to ask: proof that the model without tokens is the base.
UNTOUCHED = 'untouched'


@dataclasses.dataclass
class Data:
  """Questions.

  Attributes:
    sources: of records, as in `config.Data.train`; results are grouped by data
      set, whose name docs/data.md explains.
    corpus: files of passages, for sources that only name their ids.
    turns: of a conversation; see `config.Data`.
    on_bad_record: error or skip; see `config.Data`.
    max_text_bytes: a longer text makes a record bad.
    max_questions: of each dataset, drawn by the seed; 0 for all.
    rules: dataset -> how its answers are compared: text (if not given),
      regex, number or yes_no; see docs/evaluation.md.
    max_prefix_tokens: passages are cut to it.
    max_suffix_tokens: of virtual tokens and question; nothing is cut to it.
  """

  sources: tuple[str, ...] = schema.path(())
  corpus: tuple[str, ...] = schema.path(())
  turns: str = 'first'
  on_bad_record: str = 'error'
  max_text_bytes: int = 1 << 20
  max_questions: int = 0
  rules: dict[str, str] = dataclasses.field(default_factory=dict)
  max_prefix_tokens: int = 1280
  max_suffix_tokens: int = 256


@dataclasses.dataclass
class Cost:
  """What answers cost, measured on this machine beside the scores.

  Attributes:
    questions: timed together, and one of them alone; 0 for no measurement.
    repeats: of each, after one that is not counted; the median is reported.
  """

  questions: int = 0
  repeats: int = 3


@dataclasses.dataclass
class Report:
  """How results are summed up.

  Attributes:
    reference: the condition with which others are compared, if it is among
      those asked.
    char_f1: also report what the paper's F1 probably is; see
      docs/evaluation.md. Never to be compared with token F1.
    resamples: of the bootstrap, for 95 % intervals.
    permutations: of the paired test.
    page_questions: most questions listed on the HTML page.
  """

  reference: str = 'prompt'
  char_f1: bool = False
  resamples: int = 2000
  permutations: int = 10_000
  page_questions: int = 2000


@dataclasses.dataclass
class Config:
  """An evaluation.

  The first value of each axis (num_active, num_passages, retrievers) is the
  main one: the others are evaluated along their axis, with the other axes at
  their main value.

  Attributes:
    workdir: directory for everything that it writes, also gs://. Cells that
      are finished there are not computed again.
    seed: of sampling, of the choice and order of passages and questions, of
      resampling.
    runs: work directories of `vtokens.train`, whose tables are evaluated on
      the bases that they were trained on.
    base: the base; with `path`, `dtype` or `quantize` empty, those of the runs
      (without any, quantize=none). A table may be evaluated on its base
      quantised in another way than while it was trained, or not at all.
    templates: of conditions without virtual tokens. Those with tokens use the
      templates of their run.
    data: the questions.
    conditions: what is compared; see docs/evaluation.md. May be empty where
      there are tasks.
    num_active: numbers of virtual tokens (k); empty for all that a table has.
    num_passages: numbers of passages; 0 asks without any.
    retrievers: whose passages; '' for the only one of the records.
    shuffle_passages: show them in an order drawn for each question.
    product: evaluate every combination of the axes' values.
    decode: how answers are generated.
    cost: what they cost.
    tasks: general tasks without passages or tokens, by name; see
      docs/evaluation.md.
    report: how results are summed up.
    mesh: the devices.
    distributed: the processes.
  """

  workdir: str = schema.path()
  seed: int = 0
  runs: tuple[str, ...] = schema.path(())
  base: config.Base = dataclasses.field(
    default_factory=lambda: config.Base(dtype='', quantize='')
  )
  templates: config.Templates = dataclasses.field(
    default_factory=config.Templates
  )
  data: Data = dataclasses.field(default_factory=Data)
  conditions: tuple[str, ...] = ('closed_book', 'concat', 'prompt', 'tokens')
  num_active: tuple[int, ...] = ()
  num_passages: tuple[int, ...] = (3,)
  retrievers: tuple[str, ...] = ('',)
  shuffle_passages: bool = False
  product: bool = False
  decode: config.Decode = dataclasses.field(default_factory=config.Decode)
  cost: Cost = dataclasses.field(default_factory=Cost)
  tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
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


_CHOICES = {
  'base.dtype': ('', 'float32', 'bfloat16'),
  'base.quantize': ('', *config.QUANTIZE),
  'base.attention': config.ATTENTION,
  'data.turns': ('first', 'all'),
  'data.on_bad_record': ('error', 'skip'),
}
_POSITIVE = (
  'data.max_text_bytes',
  'data.max_prefix_tokens',
  'data.max_suffix_tokens',
  'decode.batch_size',
  'decode.max_new_tokens',
  'cost.repeats',
  'report.resamples',
  'report.permutations',
)
# Beyond these an evaluation would be stopped by memory or time, not by a
# message.
_MOST = {
  'seed': schema.MOST_SEED,
  'data.max_text_bytes': 1 << 30,
  'num_passages': schema.MOST_PASSAGES,
  'decode.batch_size': schema.MOST_ROWS,
  # They are timed in one batch.
  'cost.questions': schema.MOST_ROWS,
  'cost.repeats': 10_000,
  'report.resamples': 1_000_000,
  'report.permutations': 10_000_000,
  # A page of so many is a file of a GB.
  'report.page_questions': 1_000_000,
  'tasks[].shots': 1000,
  'distributed.num_processes': 1_000_000,
  'distributed.start_timeout': 1_000_000,
  'distributed.failure_timeout': 1_000_000,
}
_NOT_NEGATIVE = (
  'seed',
  'data.max_questions',
  'decode.temperature',
  'cost.questions',
  'report.page_questions',
)


def validate(settings: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value, or two do not fit.
  """
  values, fail = schema.check(
    settings,
    _CHOICES,
    positive=_POSITIVE,
    not_negative=_NOT_NEGATIVE,
    most=_MOST,
  )
  if not values['workdir']:
    fail('workdir', 'to be set')
  if not values['runs'] and not values['base.path']:
    fail('runs', 'a work directory of vtokens.train, or config.base.path')
  if not values['runs'] and not values['base.dtype']:
    fail('base.dtype', 'float32 or bfloat16, since there are no runs')
  config_checks.check_templates(values, fail)
  config_checks.check_top_p(values, 'decode', fail)
  if values['report.reference'] not in CONDITIONS:
    fail('report.reference', f'one of {", ".join(CONDITIONS)}')
  config_checks.check_devices(values, fail)
  names = values['conditions']
  known = (*CONDITIONS, UNTOUCHED)
  if set(names) - set(known) or not (names or values['tasks']):
    fail('conditions', f'some of {", ".join(known)}')
  with_tokens = [n for n in names if n in CONDITIONS and CONDITIONS[n].tokens]
  if with_tokens and not values['runs']:
    fail('runs', f'a trained run, for the condition {with_tokens[0]}')
  for field, least in (('num_active', 1), ('num_passages', 0)):
    if any(value < least for value in values[field]):
      fail(field, f'numbers from {least} on')
  for field in ('conditions', 'num_active', 'num_passages', 'retrievers'):
    if len(set(values[field])) < len(values[field]):
      fail(field, 'each value once')
  for field in ('num_passages', 'retrievers'):
    if not values[field]:
      fail(field, 'at least one value')
  for name, rule in values['data.rules'].items():
    if rule not in rules.RULES:
      fail('data.rules', f'{name} to have one of {", ".join(rules.RULES)}')
  for name, task in values['tasks'].items():
    check_task(name, task)
  if set(names) - {UNTOUCHED} and not values['data.sources']:
    fail('data.sources', 'to be set')
