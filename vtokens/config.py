"""What a run is: typed settings, checked as a whole before anything starts.

A config file is Python with a function `get_config() -> Config`; any field can
be overridden on the command line as `--config.section.field=value`.
"""

import dataclasses
from typing import Any

from vtokens.settings import config_checks, schema

# The authors' sentence (arXiv 2405.19670, section 3.2): it starts the table,
# and it is the instruction of the untrained condition.
INSTRUCTION = (
  'According to the previous relevant passages, please answer the following '
  'question. Only return the answer without any other words.'
)

CONDITIONS = ('closed_book', 'concat', 'prompt', 'chat_prompt')

# How the base's matrices are kept; see `Base.quantize`.
QUANTIZE = ('none', 'int8', 'int4')

# What computes attention; see `Base.attention`.
ATTENTION = ('auto', 'plain')

# Where virtual tokens can stand; see `VirtualTokens.position`.
POSITIONS = ('first', 'middle', 'last')


@dataclasses.dataclass
class Base:
  """The frozen language model.

  Attributes:
    path: a Hugging Face directory or hub id, a `.gguf` file, or
      `package:NAME/FILE` for a file inside an installed Python package.
    dtype: of weights and activations on the device: float32 or bfloat16.
    quantize: how the layers' matrices are kept: none (in dtype), int8 (a scale
      for each output channel) or int4 (one for each group of 64 inputs),
      quantised from the files' values as they are loaded. Embedding, head,
      norms and biases stay in dtype, as do products. The table that is trained
      is one of the base itself and works with any of them. A GGUF file's own
      quantisation needs none of this: its values are read as they are. See
      docs/models.md.
    attention: what computes it: auto (where there are kernels that write no
      scores to memory, these: JAX's splash attention of passages on TPUs,
      vtokens' own of passages and what follows them on A100, H100 and H200 in
      bfloat16) or plain (matrix products everywhere).
  """

  path: str = schema.path()
  dtype: str = 'bfloat16'
  quantize: str = 'none'
  attention: str = 'auto'


@dataclasses.dataclass
class VirtualTokens:
  """The table and how many of its rows an example sees.

  Attributes:
    num_virtual_tokens: rows of the table (n).
    position: where an example has them: middle (between passages and question,
      the method), first (before the passages: these depend on the table then,
      so that gradients flow through them too) or last (after the question, in
      a chat still inside the user's turn).
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
    draws_per_example: how many k are drawn for an example each time that it
      comes. Its passages are run once for all, so that a further draw costs
      its own tokens, question and answer alone.
  """

  num_virtual_tokens: int = 50
  position: str = 'middle'
  init: str = 'text'
  init_text: str = INSTRUCTION
  init_std: float = 0.02
  init_path: str = schema.path()
  draw: str = 'uniform'
  draw_exponent: float = 0.5
  num_active: int = 50
  draws_per_example: int = 1


@dataclasses.dataclass
class Templates:
  """Text around passages, question and answer; braces name what goes in.

  The defaults are those of the authors' code. Tokens sit between the
  passages and the prompt, unless config.virtual_tokens.position says otherwise.

  Attributes:
    passage: of one passage; {index} counts from 1 and stands before the
      rest; {text} is its text, with the title, if any, on a line before it
      unless {title} says where that goes.
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
class Passages:
  """Which passages a training example shows, drawn anew in each epoch.

  Attributes:
    number: least and most; drawn uniformly, less where fewer are there.
    depth: they are among the first so many of a retriever's list.
    order: shuffled (a random choice in random order, as the authors' code),
      rank (the top ones, best first), or gold_last (the top ones, those that
      are gold at the end, next to the virtual tokens). Gold is what the data
      marks as such, or else what contains an answer.
    retrievers: one of these is drawn for each example, out of those that have
      passages for it; empty for any. Passages marked as gold are a retriever
      called gold, which is drawn only if named, or if there is no other.
    distractors: probability with which a passage gives way to one that another
      question of the dataset could show; whether that happens to contain an
      answer is not looked at.
    no_answer: probability that those shown are chosen from the ones without an
      answer.
    none: probability that no passage is shown.
  """

  number: tuple[int, int] = (1, 5)
  depth: int = 5
  order: str = 'shuffled'
  retrievers: tuple[str, ...] = ()
  distractors: float = 0.0
  no_answer: float = 0.0
  none: float = 0.0


@dataclasses.dataclass
class Mixture:
  """How much of each dataset a run sees; names are those in the records.

  Attributes:
    weighting: size (each example as often as any other), temperature
      (probability of a dataset proportional to size ** (1 / temperature)), or
      weights.
    temperature: for weighting=temperature; 1 is size, more is flatter.
    weights: for weighting=weights: of each dataset, relative to one another.
    max_examples: random examples of a dataset that are used, if it has more.
    passages: for datasets that differ from config.data.passages.
    remove_leaks: leave out training questions that are, after normalisation,
      also in the validation or test data. They are counted in any case.
  """

  weighting: str = 'size'
  temperature: float = 2.0
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  max_examples: dict[str, int] = dataclasses.field(default_factory=dict)
  passages: dict[str, Passages] = dataclasses.field(default_factory=dict)
  remove_leaks: bool = True


@dataclasses.dataclass
class Data:
  """Examples and their batches.

  Attributes:
    train: sources of records, e.g. a path, or NAME=PATH to name its data set;
      docs/data.md lists what they can be, and says how data sets are
      called.
    validation: likewise; scored while training.
    test: likewise; scored before and after training.
    corpus: files of passages, for sources that only name their ids.
    turns: of a conversation: first makes its first question an example, all
      every one, with what was said before it.
    on_bad_record: error stops at the first bad record; skip counts them and
      lists them in a file.
    max_text_bytes: a longer text makes a record bad.
    passages: what a training example shows.
    mixture: of the datasets in `train`.
    batch_size: examples per update, over all devices.
    examples_per_row: how many share a row of a batch, so that rows are of
      nearly equal length; 1 pads each example by itself.
    max_prefix_tokens: of an example: bos or the chat turn's start, and the
      passages, which are cut to it.
    max_suffix_tokens: of an example: virtual tokens, question and answer,
      wherever the tokens stand.
    max_answer_tokens: longest answer, eos included. Answers beyond either are
      never drawn; a question that has no other is a bad record.
    shapes: (prefix, suffix) lengths of rows, each compiled once; a batch takes
      the first that holds all its rows. Empty: chosen from the data. With
      virtual_tokens.position=first the passages are in the suffix.
    num_shapes: how many are chosen.
    window_batches: batches whose examples are sorted into rows and batches
      together.
    workers: processes that make batches; 0 for threads of the main one.
    token_cache: directory for the tokenised training data, which runs may
      share, on a disk; empty for one in the work directory, or in the user's
      cache (~/.cache/vtokens) if that is on an object store.
  """

  train: tuple[str, ...] = schema.path(())
  validation: tuple[str, ...] = schema.path(())
  test: tuple[str, ...] = schema.path(())
  corpus: tuple[str, ...] = schema.path(())
  turns: str = 'first'
  on_bad_record: str = 'error'
  max_text_bytes: int = 1 << 20
  passages: Passages = dataclasses.field(default_factory=Passages)
  mixture: Mixture = dataclasses.field(default_factory=Mixture)
  batch_size: int = 32
  examples_per_row: int = 1
  max_prefix_tokens: int = 1024
  max_suffix_tokens: int = 160
  max_answer_tokens: int = 64
  shapes: tuple[tuple[int, int], ...] = ()
  num_shapes: int = 6
  window_batches: int = 16
  workers: int = 0
  token_cache: str = schema.path()


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
    keep_checkpoints: latest ones kept, at least two, besides the best two.
  """

  num_steps: int = 1000
  accumulation_steps: int = 1
  remat: bool = False
  log_every: int = 1
  validate_every: int = 200
  checkpoint_every: int = 50
  keep_checkpoints: int = 2


@dataclasses.dataclass
class Decode:
  """How answers are generated.

  Attributes:
    batch_size: questions answered at a time.
    max_new_tokens: longest answer generated.
    stop_at_newline: end an answer at the first line break after text.
    temperature: 0 for the most likely token (greedy); above it tokens are
      drawn, by the seed and the question's id.
    top_p: draw among the most likely tokens that together have at least this
      probability.
  """

  batch_size: int = 32
  max_new_tokens: int = 32
  stop_at_newline: bool = True
  temperature: float = 0.0
  top_p: float = 1.0


@dataclasses.dataclass
class Shown:
  """Which passages an evaluation shows.

  Attributes:
    num_passages: top passages.
    retriever: whose; empty for the only one of the records.
    shuffle_passages: show them in an order drawn for each question.
  """

  num_passages: int = 3
  retriever: str = ''
  shuffle_passages: bool = False


@dataclasses.dataclass
class Eval(Decode, Shown):
  """Scores while training, by EM and F1; see also `Decode` and `Shown`.

  Attributes:
    conditions: of the base without virtual tokens, scored before training:
      closed_book, concat, prompt, chat_prompt.
    num_active: numbers of virtual tokens scored after training; the largest
      is reported as the condition `tokens` and used in validations.
    max_validation: validation examples used; 0 for all.
    max_test: test examples used; 0 for all.
  """

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
class Tracking:
  """Where metrics go besides metrics.jsonl.

  Attributes:
    tensorboard: write event files into the work directory, too.
    wandb_project: log to this project of Weights & Biases, too.
    profile_steps: the first and the last step, counted from 1, of a trace for
      TensorBoard's profiler; (0, 0) for none.
  """

  tensorboard: bool = True
  wandb_project: str = ''
  profile_steps: tuple[int, int] = (0, 0)


@dataclasses.dataclass
class Distributed:
  """Processes that make up one run, on one machine or several.

  Attributes:
    coordinator: HOST:PORT of the first process; auto is what the environment
      says (JAX_COORDINATOR_ADDRESS, Slurm, Open MPI, a TPU pod), none is one
      process whatever that says.
    num_processes: 0 for what the environment says.
    process_id: number of this process; -1 for what the environment says.
    start_timeout: seconds to wait for the others at the start.
    failure_timeout: seconds without a sign of life after which a process
      counts as failed, and the others end.
  """

  coordinator: str = 'auto'
  num_processes: int = 0
  process_id: int = -1
  start_timeout: int = 300
  failure_timeout: int = 30


@dataclasses.dataclass
class Config:
  """A training run.

  Attributes:
    workdir: directory for everything the run writes: on a disk, on NFS, or
      gs:// (extra `gcs`).
    seed: of the table, the order of examples and every draw.
    base: see `Base`; the other sections likewise.
  """

  workdir: str = schema.path()
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
  distributed: Distributed = dataclasses.field(default_factory=Distributed)
  tracking: Tracking = dataclasses.field(default_factory=Tracking)

  @property
  def context_length(self) -> int:
    """Longest sequence that the run can make, in tokens."""
    return (
      self.data.max_prefix_tokens
      + self.data.max_suffix_tokens
      + self.eval.max_new_tokens
    )


_CHOICES = {
  'base.dtype': ('float32', 'bfloat16'),
  'base.quantize': QUANTIZE,
  'base.attention': ATTENTION,
  'virtual_tokens.position': POSITIONS,
  'virtual_tokens.init': ('text', 'vocab', 'normal', 'table'),
  'virtual_tokens.draw': ('uniform', 'power', 'per_batch', 'fixed'),
  'data.on_bad_record': ('error', 'skip'),
  'data.turns': ('first', 'all'),
  'data.mixture.weighting': ('size', 'temperature', 'weights'),
  'optim.schedule': ('cosine', 'linear', 'constant'),
}

_POSITIVE = (
  'virtual_tokens.num_virtual_tokens',
  'virtual_tokens.num_active',
  'virtual_tokens.draws_per_example',
  'data.batch_size',
  'data.max_text_bytes',
  'data.examples_per_row',
  'data.max_prefix_tokens',
  'data.max_suffix_tokens',
  'data.max_answer_tokens',
  'data.num_shapes',
  'data.window_batches',
  'data.mixture.temperature',
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
# Beyond these a run would be stopped by memory or time, not by a message.
_MOST = {
  'seed': schema.MOST_SEED,
  # A suffix has them all.
  'virtual_tokens.num_virtual_tokens': 100_000,
  'virtual_tokens.draws_per_example': 1024,
  'virtual_tokens.draw_exponent': 100,
  'virtual_tokens.init_std': 1e6,
  # A record is held and written in one piece.
  'data.max_text_bytes': 1 << 30,
  'data.batch_size': schema.MOST_ROWS,
  # Each is compiled.
  'data.num_shapes': 256,
  'data.shapes': 1 << 24,
  'data.workers': 1024,
  'data.passages.number': schema.MOST_PASSAGES,
  'data.mixture.passages[].number': schema.MOST_PASSAGES,
  # Of each the learning rate is held.
  'train.num_steps': 10_000_000,
  'optim.learning_rate': 1e6,
  'optim.clip_norm': 1e30,  # Of no gradient.
  'optim.eps': 1e6,
  'eval.batch_size': schema.MOST_ROWS,
  'eval.num_passages': schema.MOST_PASSAGES,
  'distributed.num_processes': 1_000_000,
  # Seconds, of which a week has fewer.
  'distributed.start_timeout': 1_000_000,
  'distributed.failure_timeout': 1_000_000,
}
_NOT_NEGATIVE = (
  'virtual_tokens.draw_exponent',
  'seed',
  'virtual_tokens.init_std',
  'optim.warmup_steps',
  'optim.clip_norm',
  'data.workers',
  'eval.num_passages',
  'eval.temperature',
  'eval.max_validation',
  'eval.max_test',
)


def validate(config: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value, or two do not fit;
      the message names the field as it is written on the command line.
  """
  values, fail = schema.check(
    config,
    _CHOICES,
    positive=_POSITIVE,
    not_negative=_NOT_NEGATIVE,
    most=_MOST,
  )
  for field in ('workdir', 'base.path', 'data.train'):
    if not values[field]:
      fail(field, 'to be set')
  config_checks.check_templates(values, fail)
  config_checks.check_virtual_tokens(values, fail)
  config_checks.check_data(values, fail)
  config_checks.check_passages(values, 'data.passages', fail)
  for dataset in config.data.mixture.passages:
    config_checks.check_passages(
      values, f'data.mixture.passages[{dataset}]', fail
    )
  config_checks.check_shapes(values, fail)
  config_checks.check_optim(values, fail)
  config_checks.check_eval(values, fail)
  if set(values['eval.conditions']) - set(CONDITIONS):
    fail('eval.conditions', f'some of {", ".join(CONDITIONS)}')
  config_checks.check_devices(values, fail)
  first, last = values['tracking.profile_steps']
  if not (first == last == 0 or 1 <= first <= last):
    fail('tracking.profile_steps', '(first, last) with 1 <= first <= last')


def from_dict(values: dict[str, Any]) -> Config:
  """A validated config of what `schema.to_dict` made of one.

  Raises:
    errors.UserError: a field is unknown or not valid.
  """
  config = schema.build(Config, values)
  validate(config)
  return config
