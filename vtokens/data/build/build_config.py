"""Settings of `python -m vtokens.data.build`."""

import dataclasses
import functools
import re
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vtokens.host import paths
from vtokens.settings import schema
from vtokens.settings.field_types import (
  Name,
  NaturalInt,
  OnBadRecord,
  Path,
  Seed,
  TextBytes,
  Turns,
  Unanswerable,
)

_NAME = re.compile(r'[a-z][a-z0-9_]*')


@dataclasses.dataclass
class Split(schema.Section):
  """What goes into one split of a dataset.

  Attributes:
    sources: files of questions, as PATH or, to name the dataset, NAME=PATH (see
      docs/data.md). Of two records with one id, the later is the duplicate.
    corpus: files of passages, for sources that name passages by id only.
    dataset: name of the dataset, for sources that give none; '' takes it from
      the names of file and folder.
    turns: of a conversation: first makes its first question a record, all
      each question, after what was said before it.
    max_text_bytes: a longer text makes a record bad.
    drop_answers: leave a record out, and count it, if all its answers are among
      these, e.g. MS MARCO's 'No Answer Present.'.
    unanswerable: questions whose source says that they have no answer are left
      out and counted (skip), stop the build (error), or become records without
      answers (keep).
    max_records: keep so many, drawn at random; 0 keeps all.
    seed: of that draw, which depends on the ids and not on their order.
    expected_records: refuse another number of records; 0 allows any.
  """

  sources: tuple[Path, ...] = ()
  corpus: tuple[Path, ...] = ()
  dataset: str = ''
  turns: Turns = 'first'
  max_text_bytes: TextBytes = 1 << 20
  drop_answers: tuple[str, ...] = ()
  max_records: NaturalInt = 0
  seed: Seed = 0
  expected_records: NaturalInt = 0
  unanswerable: Unanswerable = 'skip'


@dataclasses.dataclass
class Config(schema.Section):
  """A dataset of records.

  Attributes:
    name: of the dataset: a small letter, then small letters, digits and _.
    out: data directory; the dataset goes to OUT/retrieval_qa/NAME/VERSION.
    splits: by name, such as train, validation, test.
    max_passages: best ones kept of each retriever.
    on_bad_record: error stops at a bad record; skip leaves it out, counts it
      and lists it in skipped-SPLIT.txt beside the dataset.
    num_shards: files of each split; 0 for the largest power of two with which
      each file has at least 64 MiB of records, before compression.
    runner: local is this process; beam is Apache Beam, for large sets.
    beam_options: for runner=beam, e.g. ('--runner=FlinkRunner', ...); empty for
      Beam's own runner in this process.
  """

  name: str = ''
  out: Path = 'data/records'
  splits: dict[Name, Split] = dataclasses.field(default_factory=dict)
  max_passages: NaturalInt = 100
  on_bad_record: OnBadRecord = 'error'
  # They are written at the same time.
  num_shards: Annotated[int, Ge(0), Le(100_000)] = 0
  runner: Literal['local', 'beam'] = 'local'
  beam_options: tuple[str, ...] = ()


def validate(cfg: Config) -> None:
  """Checks a config.

  Raises:
    errors.UserError: names the field, its value and what was expected.
  """
  schema.check(cfg)
  refuse = functools.partial(schema.refuse, cfg)
  name = 'a small letter, then small letters, digits and _'
  if not _NAME.fullmatch(cfg.name):
    refuse('name', name)
  if not cfg.out:
    refuse('out', 'a directory')
  if paths.on_object_store(cfg.out):
    refuse('out', 'a local or mounted directory (build there, then copy)')
  if not cfg.splits:
    refuse('splits', 'at least one split')
  if cfg.beam_options and cfg.runner != 'beam':
    refuse('beam_options', "none unless runner='beam'")
  for key, split in cfg.splits.items():
    # 'all' means something to tensorflow-datasets.
    if not _NAME.fullmatch(key) or key == 'all':
      schema.refuse_value(f'splits[{key}]', key, f'{name}; not all')
    if not split.sources:
      schema.refuse(split, 'sources', 'some files', f'splits[{key}].')
