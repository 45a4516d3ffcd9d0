"""Data sets of the paper, arXiv 2405.19670, as configs of `data.build`.

Sizes are from version 3 of the paper, table 5. docs/data.md lists the files,
their publishers and licences.
"""

import dataclasses

from vtokens.data.build import build_config
from vtokens.host import errors

VARIANTS = ('', 'raw')
RAW = 'data/raw'
RETRIEVED = 'data/retrieved'
OUT = 'data/records'


@dataclasses.dataclass(frozen=True)
class File:
  """A split of a published data set.

  Attributes:
    path: path below `RAW`.
    expected_records: the paper's number of records, after `max_records` and
      `drop_answers`; 0 if the paper gives none.
    max_records: see `build_config.Split`.
    drop_answers: see `build_config.Split`.
  """

  path: str
  expected_records: int = 0
  max_records: int = 0
  drop_answers: tuple[str, ...] = ()


_NO_ANSWER = ('No Answer Present.',)

# In the order of the paper.
TRAIN = {
  'triviaqa': File('flashrag/triviaqa/train.jsonl', 78_785),
  'nq': File('flashrag/nq/train.jsonl', 79_168),
  'hotpotqa': File('flashrag/hotpotqa/train.jsonl', 90_447),
  'squad': File('flashrag/squad/train.jsonl', 87_599),
  'webquestions': File('flashrag/web_questions/train.jsonl', 3_778),
  # The paper does not say how it chose 15,000; FlashRAG's file has 15,000.
  'wikimultihop': File('flashrag/2wikimultihopqa/train.jsonl', 15_000),
  'coqa': File('coqa/coqa-train-v1.0.json', 7_199),
  # The paper does not say whether training drops unanswerable questions. Here
  # it does.
  'msmarco': File(
    'flashrag/ms_marco/train.jsonl',
    80_000,
    max_records=80_000,
    drop_answers=_NO_ANSWER,
  ),
}
TEST = {
  'triviaqa': File('flashrag/triviaqa/test.jsonl', 11_313),
  'nq': File('flashrag/nq/test.jsonl', 3_610),
  'hotpotqa': File('flashrag/hotpotqa/dev.jsonl', 7_405),
  'squad': File('flashrag/squad/dev.jsonl', 10_570),
  'webquestions': File('flashrag/web_questions/test.jsonl', 2_032),
  'wikimultihop': File('flashrag/2wikimultihopqa/dev.jsonl', 12_576),
  'coqa': File('coqa/coqa-dev-v1.0.json', 500),
  'msmarco': File(
    'flashrag/ms_marco/dev.jsonl', 55_636, drop_answers=_NO_ANSWER
  ),
  'popqa': File('flashrag/popqa/test.jsonl', 14_267),
  # The paper gives no sizes for these three.
  'fermi': File('flashrag/fermi/test.jsonl'),
  'musique': File('flashrag/musique/dev.jsonl'),
  'bamboogle': File('flashrag/bamboogle/test.jsonl'),
}


def paper_set(name: str, variant: str = '') -> build_config.Config:
  """Config of a data set of the paper.

  Args:
    name: key of `TRAIN` or `TEST`.
    variant: '' reads RETRIEVED/NAME.SPLIT.jsonl.gz, the output of
      `vtokens.retrieve`; 'raw' reads the published files, which have only the
      passages that were published with the questions.

  Returns:
    A config with the splits train and test, or one of them.

  Raises:
    errors.UserError: unknown variant.
  """
  if variant not in VARIANTS:
    raise errors.UserError(
      f'--config: no variant {variant!r} of this config; there is '
      f'{", ".join(repr(v) for v in VARIANTS)}'
    )
  files = {
    split: table[name]
    for split, table in (('train', TRAIN), ('test', TEST))
    if name in table
  }
  return build_config.Config(
    name=f'{name}_raw' if variant else name,
    out=OUT,
    splits={
      split: build_config.Split(
        sources=(
          f'{RAW}/{file.path}'
          if variant
          else f'{RETRIEVED}/{name}.{split}.jsonl.gz',
        ),
        dataset=name,
        drop_answers=file.drop_answers,
        max_records=file.max_records,
        expected_records=file.expected_records,
      )
      for split, file in files.items()
    },
  )


def paper_mix() -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Sources of the paper's eight training sets and of its twelve test sets."""

  def sources(table: dict[str, File], split: str) -> tuple[str, ...]:
    return tuple(f'records:{OUT}/retrieval_qa/{name}:{split}' for name in table)

  return sources(TRAIN, 'train'), sources(TEST, 'test')
