"""Makes the quickstart files from question files and a corpus.

  python -m vtokens.data.quickstart.build_quickstart --qa DIR --corpus DIR \
    --out DIR

Input, in UTF-8, with one JSON object in each line:

* `QA/{squad,entityquestions}.{train,test}.jsonl.gz` and
  `QA/entityquestions.dev.jsonl.gz`: {id, question, answers: [string],
  passages: [{id, title, text, gold: boolean}], retrieved: [[passage id, BM25
  score], best first]}.
* `CORPUS/*.jsonl.xz`: {id, title, text}, with every retrieved passage.

Output: `OUT/{train,validation,test}.jsonl.gz`, records in the project's own
format (`vtokens.data.formats`), with the gold passage first and one distractor
second. The README beside this file states the rules of selection. The same
input and version of zlib give the same bytes.
"""

import argparse
import gzip
import json
import lzma
import pathlib
import random
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

from vtokens.scoring import metrics

SEED = 20240530
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 1500, 100, 150  # Of each dataset.
# Most characters of a question's passages, and of an answer: a laptop should
# need ten minutes.
MAX_PASSAGES, MAX_ANSWER = 1200, 50

Row = dict[str, Any]  # A line of an input or output file.


def main(argv: Sequence[str] | None = None) -> None:
  """Builds the three files; see the module docstring."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('--qa', '--corpus', '--out'):
    parser.add_argument(name, type=pathlib.Path, metavar='DIR', required=True)
  args = parser.parse_args(argv)
  splits = build(read_questions(args.qa), args.corpus)
  for split, rows in splits.items():
    path = args.out / f'{split}.jsonl.gz'
    write(path, rows)
    print(f'{path}: {len(rows)} records, {path.stat().st_size} bytes')


def read_questions(folder: pathlib.Path) -> dict[str, list[Row]]:
  """Returns the lines of each question file, each with its `dataset`."""
  questions = {}
  for dataset, splits in (
    ('squad', ('train', 'test')),
    ('entityquestions', ('train', 'dev', 'test')),
  ):
    for split in splits:
      name = f'{dataset}.{split}'
      with gzip.open(folder / f'{name}.jsonl.gz', 'rt', encoding='utf-8') as f:
        questions[name] = [{'dataset': dataset, **json.loads(x)} for x in f]
  return questions


def build(
  questions: dict[str, list[Row]],
  corpus: pathlib.Path,
  *,
  num_train: int = NUM_TRAIN,
  num_validation: int = NUM_VALIDATION,
  num_test: int = NUM_TEST,
) -> dict[str, list[Row]]:
  """Selects the records of every split.

  Args:
    questions: result of `read_questions`.
    corpus: folder of the corpus.
    num_train: training records of each dataset.
    num_validation: validation records of each dataset.
    num_test: test records of each dataset.

  Returns:
    The records of 'train', 'validation' and 'test', the datasets in turn.

  Raises:
    ValueError: if a file has too few questions that fit.
  """
  rng = random.Random(SEED)
  texts = _read_corpus(
    corpus,
    {id_ for q in questions.values() for r in q for id_, _ in r['retrieved']},
  )
  pools = {
    name: [
      row
      for r in rows
      if (row := to_record(r, texts)) is not None and _is_short(row)
    ]
    for name, rows in questions.items()
  }
  # All test and dev questions, not only the selected ones: who trains on the
  # quickstart may evaluate on a whole test file.
  held_out = {
    metrics.normalize_answer(row['question'])
    for name, rows in questions.items()
    if not name.endswith('.train')
    for row in rows
  }
  test = _sample(rng, pools['squad.test'], num_test)
  test += _sample(rng, pools['entityquestions.test'], num_test)
  tested = {metrics.normalize_answer(row['question']) for row in test}

  squad = _without_questions(pools['squad.train'], held_out)
  squad_validation = _sample(rng, squad, num_validation)
  paragraphs = {_paragraph(row['passages'][0]) for row in squad_validation}
  held_out |= {
    metrics.normalize_answer(row['question']) for row in squad_validation
  }
  validation = squad_validation + _sample(
    rng,
    _without_questions(pools['entityquestions.dev'], tested),
    num_validation,
  )

  train = []
  for name in ('squad.train', 'entityquestions.train'):
    pool = [
      row
      for row in _without_questions(pools[name], held_out)
      if paragraphs.isdisjoint(map(_paragraph, row['passages']))
    ]
    train += _sample(rng, pool, num_train)
  splits = {'train': train, 'validation': validation, 'test': test}
  return {split: _alternate(rng, rows) for split, rows in splits.items()}


def to_record(row: Row, corpus: dict[str, Row]) -> Row | None:
  """Makes a record of a line of a question file.

  Args:
    row: the line, with its `dataset`.
    corpus: the retrieved passages by id.

  Returns:
    The record with two passages: the first gold one, and the best retrieved one
    that is not gold and has another text. None if there is no such passage.
  """
  golds = [p for p in row['passages'] if p['gold']]
  ids = {p['id'] for p in golds}
  texts = {p['text'] for p in golds}
  for id_, _ in row['retrieved']:
    distractor = corpus[id_]
    if id_ not in ids and distractor['text'] not in texts:
      return {
        **{key: row[key] for key in ('id', 'dataset', 'question', 'answers')},
        'passages': [
          {key: passage[key] for key in ('id', 'title', 'text')}
          for passage in (golds[0], distractor)
        ],
      }
  return None


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
  """Writes JSON lines, compressed, without a name or time in the header."""
  with (
    path.open('wb') as raw,
    gzip.GzipFile('', 'wb', compresslevel=9, fileobj=raw, mtime=0) as file,
  ):
    for row in rows:
      line = json.dumps(row, ensure_ascii=False, separators=(',', ':'))
      file.write(line.encode('utf-8') + b'\n')


def _read_corpus(folder: pathlib.Path, ids: Container[str]) -> dict[str, Row]:
  passages = {}
  for path in sorted(folder.glob('*.jsonl.xz')):
    with lzma.open(path, 'rt', encoding='utf-8') as file:
      for line in file:
        passage = json.loads(line)
        if passage['id'] in ids:
          passages[passage['id']] = passage
  return passages


def _sample(rng: random.Random, pool: list[Row], n: int) -> list[Row]:
  if len(pool) < n:
    raise ValueError(f'{len(pool)} questions fit, expected at least {n}')
  return rng.sample(pool, n)


def _is_short(row: Row) -> bool:
  passages = sum(len(p['title']) + len(p['text']) for p in row['passages'])
  return passages <= MAX_PASSAGES and max(map(len, row['answers'])) <= (
    MAX_ANSWER
  )


def _alternate(rng: random.Random, rows: Sequence[Row]) -> list[Row]:
  """Shuffles, and alternates the datasets: any first n are half of each."""
  rows = rng.sample(rows, len(rows))
  squad = [row for row in rows if row['dataset'] == 'squad']
  entities = [row for row in rows if row['dataset'] == 'entityquestions']
  return [row for pair in zip(squad, entities, strict=True) for row in pair]


def _without_questions(
  rows: Iterable[Row], normalized: Container[str]
) -> list[Row]:
  return [
    row
    for row in rows
    if metrics.normalize_answer(row['question']) not in normalized
  ]


def _paragraph(passage: Row) -> str:
  # 'x.0', 'x.1', ... are pieces of a long paragraph x.
  return re.sub(r'\.\d+$', '', passage['id'])


if __name__ == '__main__':
  main()
