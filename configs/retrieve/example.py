"""BM25 on a laptop, offline: 526 passages of Wikipedia, 300 questions.

The questions are the test file of the quickstart and the passages those that
come with them, gold and distractors; for their source and licence see
vtokens/data/quickstart/README.md.
"""

import pathlib

from vtokens.retrieval import config


def get_config() -> config.Config:
  """Takes seconds."""
  here = pathlib.Path(__file__).parent
  return config.Config(
    workdir='runs/retrieve_example',
    index_dir='runs/retrieve_example_index',
    top_k=20,
    corpus=config.Corpus(paths=(str(here / 'example_corpus.jsonl.gz'),)),
    questions=config.Questions(
      paths=('package:vtokens/data/quickstart/test.jsonl.gz',)
    ),
    retrievers={'bm25': config.Retriever()},
  )
