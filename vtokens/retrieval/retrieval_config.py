"""Settings of `python -m vtokens.retrieve`.

A config file is Python with a function `get_config() -> Config`.
"""

import dataclasses
import functools
import operator
import re
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator

from vtokens.data import records
from vtokens.host import errors, paths
from vtokens.settings import schema
from vtokens.settings.field_types import (
  MOST_PASSAGES,
  Name,
  OnBadRecord,
  Path,
  Rows,
  Unanswerable,
)

AUTO = 'auto'


def _check_pattern(pattern: str) -> str:
  try:
    groups = re.compile(pattern).groups
  except re.error as e:
    raise ValueError(f'a regular expression ({e})') from None
  if groups > 1:
    raise ValueError('at most one group')
  return pattern


@dataclasses.dataclass
class Corpus(schema.Section):
  """The passages to search.

  Attributes:
    paths: files of passages that make one corpus, in this order. See
      `vtokens.data.corpus` for the formats, such as JSON lines of {id, title,
      text}.
    shard_size: passages per shard. One worker indexes a shard, which has to fit
      memory; finished shards are kept if a run is killed.
    on_bad_record: error stops at the first bad line; skip leaves such lines
      out, counts and lists them.
  """

  paths: tuple[Path, ...] = ()
  shard_size: Annotated[int, Ge(1), Le(100_000_000)] = 500_000
  on_bad_record: OnBadRecord = 'error'


@dataclasses.dataclass
class Questions(schema.Section):
  """The questions to find passages for.

  Attributes:
    paths: files of records, as PATH or, to name the dataset, NAME=PATH (see
      docs/data.md). Passages that they already have are kept.
    on_bad_record: as for the corpus.
    chunk_size: questions searched together, whose passages have to fit memory;
      finished chunks are kept if a run is killed.
    unanswerable: questions whose source says that they have no answer are left
      out and counted (skip), stop the run (error), or are searched, and written
      with `answerable: false` (keep). Recall leaves them out.
  """

  paths: tuple[Path, ...] = ()
  on_bad_record: OnBadRecord = 'error'
  chunk_size: Annotated[int, Ge(1), Le(1_000_000)] = 1000
  unanswerable: Unanswerable = 'skip'


@dataclasses.dataclass
class BM25(schema.Section):
  """Lexical retrieval: BM25 as Lucene has it.

  Attributes:
    k1: saturation of term frequency.
    b: normalisation by passage length, 0 to 1.
    lower: lower case before everything else.
    token_pattern: regular expression of a token. Only with the default is text
      of scripts without spaces (Han, Kana, Thai, Khmer, Lao, Burmese) also
      found by its characters and pairs of them.
    stopwords: words left out: english, english_plus, another language that
      bm25s has a list for, or none.
    stemmer: a language of the Snowball stemmers (PyStemmer), or none.
    title_weight: how many times a title counts.
  """

  k1: Annotated[float, Ge(0), Le(1e6)] = 0.9
  b: Annotated[float, Ge(0), Le(1)] = 0.4
  lower: bool = True
  token_pattern: Annotated[str, AfterValidator(_check_pattern)] = r'(?u)\b\w+\b'
  stopwords: str = 'english_plus'
  stemmer: str = 'english'
  # A title is repeated so often.
  title_weight: Annotated[int, Ge(0), Le(100)] = 1


@dataclasses.dataclass
class Dense(schema.Section):
  """Retrieval by the inner product of sentence embeddings.

  `auto` takes a value from `encoders.KNOWN`, or else from the model's own
  sentence-transformers files; the run prints each value and where it is from.
  A passage is encoded as its title, a line break and its text.

  Attributes:
    model: a directory in Hugging Face format, a hub id, or
      `package:NAME/DIRECTORY` inside an installed Python package.
    revision: branch, tag or commit on the hub.
    query_prefix: text before each question, or auto.
    passage_prefix: text before each passage, or auto.
    pooling: of the tokens' vectors.
    normalize: yes makes the inner product the cosine similarity.
    max_length: longest input in tokens; 0 for auto.
    dtype: of the model's weights and activations.
    storage: of embeddings in the index; float16 is half the size.
    batch_size: texts encoded together.
    device: auto, or a torch device such as cuda:0.
  """

  model: Path = ''
  revision: str = 'main'
  query_prefix: str = AUTO
  passage_prefix: str = AUTO
  pooling: Literal['auto', 'cls', 'mean'] = 'auto'
  normalize: Literal['auto', 'yes', 'no'] = 'auto'
  max_length: Annotated[int, Ge(0), Le(1 << 24)] = 0
  dtype: Literal['float32', 'float16', 'bfloat16'] = 'float32'
  storage: Literal['float32', 'float16'] = 'float32'
  batch_size: Rows = 64
  device: str = AUTO


@dataclasses.dataclass
class Retriever(schema.Section):
  """One way to search the corpus.

  Attributes:
    kind: of search.
    bm25: for kind=bm25.
    dense: for kind=dense.
  """

  kind: Literal['bm25', 'dense'] = 'bm25'
  bm25: BM25 = dataclasses.field(default_factory=BM25)
  dense: Dense = dataclasses.field(default_factory=Dense)


@dataclasses.dataclass
class Execution(schema.Section):
  """Where shards are indexed and searched.

  Attributes:
    runner: loop (this process, one shard after another) or beam.
    beam_options: Apache Beam's pipeline options, e.g.
      ('--runner=FlinkRunner', '--flink_master=host:8081'). `index_dir` and
      `workdir` must have the same paths on all workers.
  """

  runner: Literal['loop', 'beam'] = 'loop'
  beam_options: tuple[str, ...] = ()


@dataclasses.dataclass
class Config(schema.Section):
  """A retrieval run.

  Attributes:
    workdir: directory for the records and intermediate results.
    index_dir: directory of the indices; runs over the same corpus share it.
    on_stale_index: for an index in `index_dir` that is damaged, or of another
      corpus or settings: error stops there, rebuild replaces it.
    top_k: passages kept for each question and retriever.
    compress: write records.jsonl.gz rather than records.jsonl.
    corpus: see `Corpus`; the other sections likewise.
    retrievers: by the name under which their passages are written.
  """

  workdir: Path = ''
  index_dir: Path = ''
  on_stale_index: Literal['error', 'rebuild'] = 'error'
  top_k: Annotated[int, Ge(1), Le(MOST_PASSAGES)] = 100
  compress: bool = True
  corpus: Corpus = dataclasses.field(default_factory=Corpus)
  questions: Questions = dataclasses.field(default_factory=Questions)
  retrievers: dict[Name, Retriever] = dataclasses.field(default_factory=dict)
  execution: Execution = dataclasses.field(default_factory=Execution)


# Names become directories next to these.
_RESERVED = ('corpus', records.GIVEN)
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


def validate(config: Config) -> None:
  """Checks every field alone and together.

  Raises:
    errors.UserError: a field has a wrong type or value; the message names it
      as it is written on the command line.
  """
  schema.check(config)
  refuse = functools.partial(schema.refuse, config)
  for field in (
    'workdir',
    'index_dir',
    'corpus.paths',
    'questions.paths',
    'retrievers',
  ):
    if not operator.attrgetter(field)(config):
      refuse(field, 'to be set')
  for field in ('workdir', 'index_dir'):
    if paths.on_object_store(getattr(config, field)):
      refuse(field, 'a local or mounted directory (retrieve there, then copy)')
  if config.workdir == config.index_dir:
    refuse('index_dir', 'another directory than config.workdir')
  if config.execution.beam_options and config.execution.runner != 'beam':
    refuse('execution.beam_options', 'none, since execution.runner is not beam')
  for name, retriever in config.retrievers.items():
    _check_name(name)
    if retriever.kind == 'dense' and not retriever.dense.model:
      schema.refuse(
        retriever, 'dense.model', 'to be set', f'retrievers[{name}].'
      )


def _check_name(name: str) -> None:
  reserved = (*_RESERVED, records.GOLD)
  if not _NAME.fullmatch(name) or name in reserved:
    raise errors.UserError(
      f'config.retrievers: {name!r} cannot be the name of a retriever; '
      'expected letters, digits, . _ and -, and none of '
      f'{", ".join(reserved)}'
    )
