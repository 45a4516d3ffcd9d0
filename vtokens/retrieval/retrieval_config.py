"""What a retrieval run is: typed settings, checked before anything starts.

A config file is Python with a function `get_config() -> Config`.
"""

import dataclasses
import re

from vtokens.data import records
from vtokens.host import errors, paths
from vtokens.settings import schema

AUTO = 'auto'


@dataclasses.dataclass
class Corpus:
  """The passages to search.

  Attributes:
    paths: files of passages, in any format that `vtokens.data.corpus` lists,
      such as JSON lines of {id, title, text}; they are one corpus, in this
      order.
    shard_size: passages per shard. A shard is what one worker indexes, what
      is kept if a run is killed, and what has to fit memory.
    on_bad_record: error stops at the first bad line; skip leaves such lines
      out, counts and lists them.
  """

  paths: tuple[str, ...] = schema.path(())
  shard_size: int = 500_000
  on_bad_record: str = 'error'


@dataclasses.dataclass
class Questions:
  """The questions to find passages for.

  Attributes:
    paths: files of records, each perhaps as NAME=PATH with the name of its data
      set (docs/data.md). Passages that they have already are kept.
    on_bad_record: as for the corpus.
    chunk_size: questions searched together; what is kept if a run is killed.
  """

  paths: tuple[str, ...] = schema.path(())
  on_bad_record: str = 'error'
  chunk_size: int = 1000


@dataclasses.dataclass
class BM25:
  """Lexical retrieval: BM25 as Lucene has it.

  Attributes:
    k1: saturation of term frequency.
    b: normalisation by passage length, 0 to 1.
    lower: lower case before everything else.
    token_pattern: regular expression of a token. With the default, text of
      scripts without spaces (Han, Kana, Thai, Khmer, Lao, Burmese) is also
      found by its characters and pairs of them; another pattern is all there
      is.
    stopwords: words left out: english, english_plus, another language that
      bm25s has a list for, or none.
    stemmer: a language of the Snowball stemmers (PyStemmer), or none.
    title_weight: how many times a title counts.
  """

  k1: float = 0.9
  b: float = 0.4
  lower: bool = True
  token_pattern: str = r'(?u)\b\w+\b'
  stopwords: str = 'english_plus'
  stemmer: str = 'english'
  title_weight: int = 1


@dataclasses.dataclass
class Dense:
  """Retrieval by the inner product of sentence embeddings.

  `auto` is what is known of the model (`encoders.KNOWN`), or else what its
  own sentence-transformers files say; the run prints what it took from where.
  A passage is encoded as its title, a line break and its text.

  Attributes:
    model: a directory in Hugging Face format, a hub id, or
      `package:NAME/DIRECTORY` inside an installed Python package.
    revision: branch, tag or commit on the hub.
    query_prefix: text before each question, or auto.
    passage_prefix: text before each passage, or auto.
    pooling: cls, mean, or auto.
    normalize: yes (cosine similarity), no, or auto.
    max_length: longest input in tokens; 0 for auto.
    dtype: of the model's weights and activations: float32, float16, bfloat16.
    storage: of embeddings in the index: float32, or float16 for half the
      size.
    batch_size: texts encoded together.
    device: auto, or a torch device such as cuda:0.
  """

  model: str = schema.path()
  revision: str = 'main'
  query_prefix: str = AUTO
  passage_prefix: str = AUTO
  pooling: str = AUTO
  normalize: str = AUTO
  max_length: int = 0
  dtype: str = 'float32'
  storage: str = 'float32'
  batch_size: int = 64
  device: str = AUTO


@dataclasses.dataclass
class Retriever:
  """One way to search the corpus.

  Attributes:
    kind: bm25 or dense.
    bm25: for kind=bm25.
    dense: for kind=dense.
  """

  kind: str = 'bm25'
  bm25: BM25 = dataclasses.field(default_factory=BM25)
  dense: Dense = dataclasses.field(default_factory=Dense)


@dataclasses.dataclass
class Execution:
  """Where the shards are worked on.

  Attributes:
    runner: loop (this process, one shard after another) or beam.
    beam_options: Apache Beam's pipeline options, e.g.
      ('--runner=FlinkRunner', '--flink_master=host:8081'). All workers need
      to see `index_dir` and `workdir` under the same path.
  """

  runner: str = 'loop'
  beam_options: tuple[str, ...] = ()


@dataclasses.dataclass
class Config:
  """A retrieval run.

  Attributes:
    workdir: directory for the records and what leads to them.
    index_dir: directory of the indices, which runs over the same corpus
      share.
    on_stale_index: if `index_dir` holds an index of another corpus or other
      settings, or a damaged one: error says so, rebuild replaces it.
    top_k: passages kept for each question and retriever.
    compress: write records.jsonl.gz rather than records.jsonl.
    corpus: see `Corpus`; the other sections likewise.
    retrievers: by the name under which their passages are written.
  """

  workdir: str = schema.path()
  index_dir: str = schema.path()
  on_stale_index: str = 'error'
  top_k: int = 100
  compress: bool = True
  corpus: Corpus = dataclasses.field(default_factory=Corpus)
  questions: Questions = dataclasses.field(default_factory=Questions)
  retrievers: dict[str, Retriever] = dataclasses.field(default_factory=dict)
  execution: Execution = dataclasses.field(default_factory=Execution)


_CHOICES = {
  'on_stale_index': ('error', 'rebuild'),
  'corpus.on_bad_record': ('error', 'skip'),
  'questions.on_bad_record': ('error', 'skip'),
  'execution.runner': ('loop', 'beam'),
}
_RETRIEVER_CHOICES = {
  'kind': ('bm25', 'dense'),
  'dense.pooling': (AUTO, 'cls', 'mean'),
  'dense.normalize': (AUTO, 'yes', 'no'),
  'dense.dtype': ('float32', 'float16', 'bfloat16'),
  'dense.storage': ('float32', 'float16'),
}
# Beyond these a retrieval would be stopped by memory or time, not by a message.
_MOST = {
  'top_k': schema.MOST_PASSAGES,
  # A shard has to fit memory, and so have the passages found for a chunk.
  'corpus.shard_size': 100_000_000,
  'questions.chunk_size': 1_000_000,
  'retrievers[].bm25.k1': 1e6,
  # A title is repeated so often.
  'retrievers[].bm25.title_weight': 100,
  'retrievers[].dense.max_length': 1 << 24,
  'retrievers[].dense.batch_size': schema.MOST_ROWS,
}
# Names become directories next to these.
_RESERVED = ('corpus', records.GIVEN)
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


def validate(config: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value; the message names it
      as it is written on the command line.
  """
  values, fail = schema.check(config, _CHOICES, most=_MOST)
  for field in ('top_k', 'corpus.shard_size', 'questions.chunk_size'):
    if values[field] < 1:
      fail(field, 'a number above 0')
  for field in (
    'workdir',
    'index_dir',
    'corpus.paths',
    'questions.paths',
    'retrievers',
  ):
    if not values[field]:
      fail(field, 'to be set')
  for field in ('workdir', 'index_dir'):
    if paths.on_object_store(values[field]):
      fail(field, 'a local or mounted directory (retrieve there, then copy)')
  if values['workdir'] == values['index_dir']:
    fail('index_dir', 'another directory than config.workdir')
  if values['execution.beam_options'] and config.execution.runner != 'beam':
    fail('execution.beam_options', 'none, since execution.runner is not beam')

  for name in config.retrievers:
    _validate_retriever(name, values, fail)


def _validate_retriever(name, values, fail) -> None:
  if not _NAME.fullmatch(name) or name in (*_RESERVED, records.GOLD):
    raise errors.UserError(
      f'config.retrievers: {name!r} cannot be the name of a retriever; '
      'expected letters, digits, . _ and -, and none of '
      f'{", ".join((*_RESERVED, records.GOLD))}'
    )
  root = f'retrievers[{name}].'
  for field, choices in _RETRIEVER_CHOICES.items():
    if values[root + field] not in choices:
      fail(root + field, f'one of {", ".join(choices)}')
  for field in ('bm25.title_weight', 'dense.max_length', 'bm25.k1'):
    if values[root + field] < 0:
      fail(root + field, 'a number not below 0')
  if not 0 <= values[root + 'bm25.b'] <= 1:
    fail(root + 'bm25.b', 'a number from 0 to 1')
  if values[root + 'dense.batch_size'] < 1:
    fail(root + 'dense.batch_size', 'a number above 0')
  try:
    groups = re.compile(values[root + 'bm25.token_pattern']).groups
  except re.error as e:
    fail(root + 'bm25.token_pattern', f'a regular expression ({e})')
  if groups > 1:
    fail(root + 'bm25.token_pattern', 'at most one group')
  if values[root + 'kind'] == 'dense' and not values[root + 'dense.model']:
    fail(root + 'dense.model', 'to be set')
