"""What a run is: typed settings, checked as a whole before anything starts.

A config file is Python with a function `get_config() -> Config`; any field can
be overridden on the command line as `--config.section.field=value`.
"""

import dataclasses
import math
import string
from typing import Any

from vtokens import errors, schema

# The authors' sentence (arXiv 2405.19670, section 3.2): it starts the table,
# and it is the instruction of the untrained condition.
INSTRUCTION = (
  'According to the previous relevant passages, please answer the following '
  'question. Only return the answer without any other words.'
)

CONDITIONS = ('closed_book', 'concat', 'prompt', 'chat_prompt')


@dataclasses.dataclass
class Base:
  """The frozen language model.

  Attributes:
    path: a Hugging Face directory or hub id, a `.gguf` file, or
      `package:NAME/FILE` for a file inside an installed Python package.
    dtype: of weights and activations on the device: float32 or bfloat16.
  """

  path: str = ''
  dtype: str = 'bfloat16'


@dataclasses.dataclass
class VirtualTokens:
  """The table and how many of its rows an example sees.

  Attributes:
    num_virtual_tokens: rows of the table (n).
    init: text (rows are the embeddings of `init_text`, repeated), vocab
      (embeddings of random tokens that are not special), normal, or table (a
      saved one).
    init_text: for init=text.
    init_std: standard deviation for init=normal.
    init_path: `table.safetensors` for init=table.
    draw: how many of the first rows an example gets: uniform (1..n, for each
      example), power (likewise, with P(k) proportional to
      k ** -draw_exponent: few tokens become better and training faster),
      per_batch (uniform, once for a whole batch, as the authors' code), or
      fixed.
    draw_exponent: for draw=power; 0 is uniform.
    num_active: for draw=fixed.
  """

  num_virtual_tokens: int = 50
  init: str = 'text'
  init_text: str = INSTRUCTION
  init_std: float = 0.02
  init_path: str = ''
  draw: str = 'uniform'
  draw_exponent: float = 0.5
  num_active: int = 50


@dataclasses.dataclass
class Templates:
  """Text around passages, question and answer; braces name what goes in.

  The defaults are those of the authors' code. Tokens sit between the
  passages and the prompt.

  Attributes:
    passage: of one passage; {index} counts from 1, {text} is its text with
      the title, if any, on a line before it.
    after_passages: between the last passage and what follows.
    prompt: of the question, for virtual tokens and closed book.
    concat: of the question, for the condition `concat`.
    instruction: of the question, for `prompt` and `chat_prompt`.
    answer: of the answer, before eos.
    chat: train and ask with virtual tokens inside the user's turn of the
      base's chat template: turn's start, passages, tokens, prompt, turn's
      end. Off, it is the paper's plain text.
    chat_answer: of the answer, before the token that ends a turn.
  """

  passage: str = '[{index}] {text}\n'
  after_passages: str = '\n'
  prompt: str = 'Question: {question}\nAnswer:'
  concat: str = '{question}'
  instruction: str = INSTRUCTION + '\nQuestion: {question}\nAnswer:'
  answer: str = ' {answer}'
  chat: bool = False
  chat_answer: str = '{answer}'


@dataclasses.dataclass
class Data:
  """Examples and their batches.

  Attributes:
    train: JSONL files, plain or .gz/.xz/.bz2.
    validation: likewise; scored while training.
    test: likewise; scored before and after training.
    on_bad_record: error stops at the first bad line; skip counts and reports
      them.
    num_passages: least and most passages of a training example; the number
      is drawn uniformly for each, and is less where fewer are there.
    shuffle_passages: a random choice in random order (as the authors' code)
      instead of the top ones in rank order; evaluation shuffles the top ones.
    batch_size: examples per update, over all devices.
    buckets: (prefix, suffix) lengths in tokens, each compiled once. A batch
      takes the first that holds all its examples. Passages are cut to the
      longest prefix; a question that does not fit the longest suffix is an
      error.
    max_answer_tokens: longest answer, eos included.
    window_batches: batches that are sorted by length together, so that a
      batch holds examples of similar length.
  """

  train: tuple[str, ...] = ()
  validation: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  on_bad_record: str = 'error'
  num_passages: tuple[int, int] = (1, 5)
  shuffle_passages: bool = True
  batch_size: int = 32
  buckets: tuple[tuple[int, int], ...] = ((512, 160), (1024, 160))
  max_answer_tokens: int = 64
  window_batches: int = 16


@dataclasses.dataclass
class Optim:
  """Adam on the table.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear, from peak / (warmup_steps + 1).
    schedule: after the warm-up: cosine or linear (to 0 at the last step), or
      constant.
    clip_norm: of the gradient's global norm; 0 for none.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: of Adam.
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  schedule: str = 'cosine'
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8


@dataclasses.dataclass
class Train:
  """The loop.

  Attributes:
    num_steps: updates.
    accumulation_steps: microbatches per update.
    remat: recompute the suffix's activations in the backward pass.
    log_every: steps between lines of metrics.jsonl.
    validate_every: steps between validations; one always ends the run.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: latest ones kept, besides the best.
  """

  num_steps: int = 1000
  accumulation_steps: int = 1
  remat: bool = False
  log_every: int = 1
  validate_every: int = 200
  checkpoint_every: int = 50
  keep_checkpoints: int = 2


@dataclasses.dataclass
class Eval:
  """Greedy answers, scored by EM and F1.

  Attributes:
    batch_size: examples per batch.
    num_passages: top passages shown.
    max_new_tokens: longest answer generated.
    stop_at_newline: end an answer at the first line break after text.
    conditions: of the base without virtual tokens, scored before training:
      closed_book, concat, prompt, chat_prompt.
    num_active: numbers of virtual tokens scored after training; the largest
      is reported as the condition `tokens` and used in validations.
    max_validation: validation examples used; 0 for all.
    max_test: test examples used; 0 for all.
  """

  batch_size: int = 32
  num_passages: int = 3
  max_new_tokens: int = 32
  stop_at_newline: bool = True
  conditions: tuple[str, ...] = CONDITIONS
  num_active: tuple[int, ...] = (1, 5, 20, 50)
  max_validation: int = 0
  max_test: int = 0


@dataclasses.dataclass
class Mesh:
  """Devices.

  Attributes:
    shape: along (data, fsdp, tensor); -1 is as many as are left.
  """

  shape: tuple[int, int, int] = (-1, 1, 1)


@dataclasses.dataclass
class Config:
  """A training run.

  Attributes:
    workdir: directory for everything the run writes.
    seed: of the table, the order of examples and every draw.
    base: see `Base`; the other sections likewise.
  """

  workdir: str = ''
  seed: int = 0
  base: Base = dataclasses.field(default_factory=Base)
  virtual_tokens: VirtualTokens = dataclasses.field(
    default_factory=VirtualTokens
  )
  templates: Templates = dataclasses.field(default_factory=Templates)
  data: Data = dataclasses.field(default_factory=Data)
  optim: Optim = dataclasses.field(default_factory=Optim)
  train: Train = dataclasses.field(default_factory=Train)
  eval: Eval = dataclasses.field(default_factory=Eval)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)

  @property
  def context_length(self) -> int:
    """Longest sequence that the run can make, in tokens."""
    prefix, suffix = self.data.buckets[-1]
    return prefix + suffix + self.eval.max_new_tokens


_CHOICES = {
  'base.dtype': ('float32', 'bfloat16'),
  'virtual_tokens.init': ('text', 'vocab', 'normal', 'table'),
  'virtual_tokens.draw': ('uniform', 'power', 'per_batch', 'fixed'),
  'data.on_bad_record': ('error', 'skip'),
  'optim.schedule': ('cosine', 'linear', 'constant'),
}

_POSITIVE = (
  'virtual_tokens.num_virtual_tokens',
  'virtual_tokens.num_active',
  'data.batch_size',
  'data.max_answer_tokens',
  'data.window_batches',
  'optim.learning_rate',
  'optim.eps',
  'train.num_steps',
  'train.accumulation_steps',
  'train.log_every',
  'train.validate_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'eval.batch_size',
  'eval.max_new_tokens',
)
_NOT_NEGATIVE = (
  'virtual_tokens.draw_exponent',
  'seed',
  'virtual_tokens.init_std',
  'optim.warmup_steps',
  'optim.clip_norm',
  'eval.num_passages',
  'eval.max_validation',
  'eval.max_test',
)
_PLACEHOLDERS = {
  'templates.passage': {'index', 'text'},
  'templates.prompt': {'question'},
  'templates.concat': {'question'},
  'templates.instruction': {'question'},
  'templates.answer': {'answer'},
  'templates.chat_answer': {'answer'},
}


def validate(config: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value, or two do not fit;
      the message names the field as it is written on the command line.
  """
  values = schema.flatten(config)

  def fail(field: str, expected: str):
    raise errors.UserError(
      f'config.{field}: expected {expected}, got {values[field]!r}'
    )

  for field, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      fail(field, 'a finite number')
  for field, choices in _CHOICES.items():
    if values[field] not in choices:
      fail(field, f'one of {", ".join(choices)}')
  for field in _POSITIVE:
    if values[field] <= 0:
      fail(field, 'a number above 0')
  for field in _NOT_NEGATIVE:
    if values[field] < 0:
      fail(field, 'a number not below 0')
  for field in ('workdir', 'base.path', 'data.train'):
    if not values[field]:
      fail(field, 'to be set')
  for field, names in _PLACEHOLDERS.items():
    try:
      used = placeholders(values[field])
    except ValueError:  # A single brace.
      used = {'{'}
    if used - names:
      fail(field, f'no placeholders but {sorted(names)} ({{{{ is a brace)')
    missing = sorted(names - {'index'} - used)
    if missing:
      fail(field, f'the placeholder {{{missing[0]}}}')

  rows = values['virtual_tokens.num_virtual_tokens']
  fixed = values['virtual_tokens.draw'] == 'fixed'
  if fixed and values['virtual_tokens.num_active'] > rows:
    fail(
      'virtual_tokens.num_active',
      f'at most virtual_tokens.num_virtual_tokens={rows}, since draw=fixed',
    )
  active = values['eval.num_active']
  if not active or min(active) < 1 or max(active) > rows:
    fail(
      'eval.num_active',
      f'numbers from 1 to virtual_tokens.num_virtual_tokens={rows}',
    )
  if values['virtual_tokens.draw'] == 'fixed':
    trained = values['virtual_tokens.num_active']
    if max(active) > trained:
      fail(
        'eval.num_active',
        f'at most virtual_tokens.num_active={trained}, since draw=fixed '
        'trains no more rows',
      )
  unknown = set(values['eval.conditions']) - set(CONDITIONS)
  if unknown:
    fail('eval.conditions', f'some of {", ".join(CONDITIONS)}')
  init = values['virtual_tokens.init']
  if init == 'table' and not values['virtual_tokens.init_path']:
    fail('virtual_tokens.init_path', 'a file, since init=table')
  if init == 'text' and not values['virtual_tokens.init_text'].strip():
    fail('virtual_tokens.init_text', 'some text, since init=text')
  low, high = values['data.num_passages']
  if not 0 <= low <= high:
    fail('data.num_passages', '(least, most) with 0 <= least <= most')
  batch, micro = values['data.batch_size'], values['train.accumulation_steps']
  if batch % micro:
    fail('train.accumulation_steps', f'a divisor of data.batch_size={batch}')
  buckets = values['data.buckets']
  if not buckets or min(min(bucket) for bucket in buckets) < 1:
    fail('data.buckets', 'at least one pair of lengths above 0')
  # The last bucket has to hold whatever fits any other.
  if any(p > buckets[-1][0] or s > buckets[-1][1] for p, s in buckets):
    fail('data.buckets', 'the last one to be the largest in both lengths')
  if buckets[-1][1] < rows + values['data.max_answer_tokens']:
    fail(
      'data.buckets',
      f'the last suffix to hold {rows} virtual tokens and '
      f'data.max_answer_tokens={values["data.max_answer_tokens"]}',
    )
  shape = values['mesh.shape']
  if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    fail('mesh.shape', 'numbers above 0, or -1 for one of them')
  if not 0 <= values['optim.b1'] < 1:
    fail('optim.b1', 'a number in [0, 1)')
  if not 0 <= values['optim.b2'] < 1:
    fail('optim.b2', 'a number in [0, 1)')
  steps = values['train.num_steps']
  if values['optim.warmup_steps'] >= steps:
    fail('optim.warmup_steps', f'less than train.num_steps={steps}')


def from_dict(values: dict[str, Any]) -> Config:
  """A validated config of what `schema.to_dict` made of one.

  Raises:
    errors.UserError: a field is unknown or not valid.
  """
  config = schema.build(Config, values)
  validate(config)
  return config


def placeholders(template: str) -> set[str]:
  """What is in braces, as it is written: 'text', but also 'text!r:9'."""
  return {
    name
    + (f'!{conversion}' if conversion else '')
    + (f':{spec}' if spec else '')
    for _, name, spec, conversion in string.Formatter().parse(template)
    if name is not None
  }
