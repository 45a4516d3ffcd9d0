"""What `vtokens.data.build` is to build."""

import dataclasses
import re

from vtokens.host import errors, paths
from vtokens.settings import schema

RUNNERS = ('local', 'beam')
_NAME = re.compile(r'[a-z][a-z0-9_]*')


@dataclasses.dataclass
class Split:
  """What goes into one split of a dataset.

  Attributes:
    sources: files of questions, each perhaps as NAME=PATH with the name of its
      data set (docs/data.md), in the order that decides which of two
      records with one id is the duplicate.
    corpus: files of passages, for sources that name passages by id only.
    dataset: name of the dataset, for sources that give none; '' takes it from
      the names of file and folder.
    turns: of a conversation: first makes its first question a record, all
      every one, with what was said before it.
    max_text_bytes: a longer text makes a record bad.
    drop_answers: a record is left out, and counted, if all its answers are
      among these, e.g. MS MARCO's 'No Answer Present.'.
    max_records: keep so many, drawn at random; 0 keeps all.
    seed: of that draw, which depends on the ids alone and not on their order.
    expected_records: refuse another number of records; 0 allows any.
  """

  sources: tuple[str, ...] = schema.path(())
  corpus: tuple[str, ...] = schema.path(())
  dataset: str = ''
  turns: str = 'first'
  max_text_bytes: int = 1 << 20
  drop_answers: tuple[str, ...] = ()
  max_records: int = 0
  seed: int = 0
  expected_records: int = 0


@dataclasses.dataclass
class Config:
  """A dataset of records.

  Attributes:
    name: of the dataset: a small letter, then these, digits and _.
    out: data directory; the dataset goes to OUT/retrieval_qa/NAME/VERSION.
    splits: by name, such as train, validation, test.
    max_passages: kept of each retriever, the best.
    on_bad_record: error stops at a bad record; skip leaves it out, counts it
      and lists it in skipped-SPLIT.txt beside the dataset.
    num_shards: files of each split; 0 is by size: the largest power of two
      with which each has at least 64 MiB of records, before compression.
    runner: local is this process; beam is Apache Beam, for large sets.
    beam_options: for runner=beam, e.g. ('--runner=FlinkRunner', ...); none is
      Beam's own runner in this process.
  """

  name: str = ''
  out: str = schema.path('data/records')
  splits: dict[str, Split] = dataclasses.field(default_factory=dict)
  max_passages: int = 100
  on_bad_record: str = 'error'
  num_shards: int = 0
  runner: str = 'local'
  beam_options: tuple[str, ...] = ()


def validate(cfg: Config) -> None:
  """Checks a config.

  Raises:
    errors.UserError: names the field, what it is and what was expected.
  """
  schema.check(
    cfg,
    {},
    most={
      'num_shards': 100_000,  # Files, which are written at the same time.
      'splits[].max_text_bytes': 1 << 30,
      'splits[].seed': schema.MOST_SEED,
    },
  )

  def check(holds: object, field: str, value: object, expected: str) -> None:
    if not holds:
      raise errors.UserError(
        f'config.{field}: expected {expected}, got {value!r}'
      )

  name = 'a small letter, then small letters, digits and _'
  check(_NAME.fullmatch(cfg.name), 'name', cfg.name, name)
  check(cfg.out, 'out', cfg.out, 'a directory')
  check(
    not paths.on_object_store(cfg.out),
    'out',
    cfg.out,
    'a local or mounted directory (build there, then copy)',
  )
  check(cfg.splits, 'splits', cfg.splits, 'at least one split')
  check(cfg.max_passages >= 0, 'max_passages', cfg.max_passages, '>= 0')
  check(
    cfg.on_bad_record in ('error', 'skip'),
    'on_bad_record',
    cfg.on_bad_record,
    'error or skip',
  )
  check(cfg.num_shards >= 0, 'num_shards', cfg.num_shards, '>= 0')
  check(cfg.runner in RUNNERS, 'runner', cfg.runner, ' or '.join(RUNNERS))
  check(
    cfg.runner == 'beam' or not cfg.beam_options,
    'beam_options',
    cfg.beam_options,
    "none unless runner='beam'",
  )
  for key, split in cfg.splits.items():
    field = f'splits[{key}]'
    # 'all' means something to tensorflow-datasets.
    check(_NAME.fullmatch(key) and key != 'all', field, key, f'{name}; not all')
    check(split.sources, f'{field}.sources', split.sources, 'some files')
    check(
      split.turns in ('first', 'all'),
      f'{field}.turns',
      split.turns,
      'first or all',
    )
    check(
      split.max_text_bytes > 0,
      f'{field}.max_text_bytes',
      split.max_text_bytes,
      'a number above 0',
    )
    for number in ('max_records', 'expected_records'):
      value = getattr(split, number)
      check(value >= 0, f'{field}.{number}', value, '>= 0')
