"""Measures BM25's recall with several text analyses, on training questions.

python benchmarks/retrieval_bm25_options.py --data DIR --work DIR [--json FILE]

DIR has corpus/*.jsonl.xz and qa/*.train.jsonl.gz. It searches for 400 evenly
spaced questions of each set. Each variant changes one setting of BASE. These
figures decided the defaults of `config.BM25`.
"""

import argparse
import json
import pathlib
import time
from typing import Any

from vtokens.data import containment
from vtokens.retrieval import (
  passage_store,
  recall,
  retrieval_config,
  retrieval_inputs,
  search,
)

BASE: dict[str, Any] = {
  'stopwords': 'english',
  'stemmer': 'english',
  'title_weight': 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
  'base': {},
  'no stemmer': {'stemmer': 'none'},
  'porter': {'stemmer': 'porter'},
  'no stopwords': {'stopwords': 'none'},
  'english_plus': {'stopwords': 'english_plus'},
  'two letters': {'token_pattern': r'(?u)\b\w\w+\b'},
  'title twice': {'title_weight': 2},
  'title thrice': {'title_weight': 3},
  'no title': {'title_weight': 0},
  'k1 1.2, b 0.75': {'k1': 1.2, 'b': 0.75},
  'k1 1.5, b 0.75': {'k1': 1.5, 'b': 0.75},
  'case kept': {'lower': False},
}
PER_SET = 400
TOP_K = 20


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args()
  questions = []
  for path in sorted(args.data.glob('qa/*.train.jsonl.gz')):
    own, _ = retrieval_inputs.read_questions([str(path)], on_bad_record='skip')
    questions += own[:: max(1, len(own) // PER_SET)][:PER_SET]
  corpus = passage_store.prepare(
    retrieval_config.Corpus(
      paths=tuple(map(str, sorted(args.data.glob('corpus/*')))),
      on_bad_record='skip',
    ),
    args.work,
    rebuild=False,
  )
  matchers = [containment.Matcher(question.answers) for question in questions]
  datasets = [question.dataset for question in questions]
  texts = [question.question for question in questions]
  figures = {}
  for name, changes in VARIANTS.items():
    values = {**BASE, **changes}
    began = time.monotonic()
    slug = ''.join(c if c.isalnum() else '-' for c in name)
    index = search.prepare_index(
      slug,
      search.make_method(
        retrieval_config.Retriever(bm25=retrieval_config.BM25(**values)), slug
      ),
      corpus,
      args.work,
      retrieval_config.Execution(),
      rebuild=False,
    )
    built = time.monotonic()
    search.search(
      index, corpus, [texts], args.work, retrieval_config.Execution(), TOP_K
    )
    searched = time.monotonic()
    hits = search.read_hits(args.work, slug, 0)
    ranks = [
      matcher.first(corpus[row] for row in rows if row >= 0)
      for matcher, rows in zip(matchers, hits.rows, strict=True)
    ]
    table = recall.table(datasets, {'bm25': ranks}, TOP_K)
    found: dict[str, Any] = {
      'changes': changes,
      'build_s': round(built - began, 1),
      'ms_per_question': round(1e3 * (searched - built) / len(texts), 2),
      'recall': {d: row['bm25'] for d, row in table.items()},
      'mean': {
        f'recall@{k}': sum(0 < r <= k for r in ranks) / len(ranks)
        for k in (1, 5, 20)
      },
    }
    figures[name] = found
    means = ', '.join(f'{k} {100 * v:.1f}' for k, v in found['mean'].items())
    print(f'{name:16} {means}', flush=True)
  if args.json:
    args.json.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  main()
