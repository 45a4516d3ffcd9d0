"""BM25 on a laptop, offline: 526 passages of Wikipedia, 300 questions.

The questions are the test file of the quickstart and the passages those that
come with them, gold and distractors; for their source and licence see
vtokens/data/quickstart/README.md.
"""

import pathlib

from vtokens.retrieval import retrieval_config


def get_config() -> retrieval_config.Config:
  """Takes seconds."""
  here = pathlib.Path(__file__).parent
  return retrieval_config.Config(
    workdir='runs/retrieve_example',
    index_dir='runs/retrieve_example_index',
    top_k=20,
    corpus=retrieval_config.Corpus(
      paths=(str(here / 'example_corpus.jsonl.gz'),)
    ),
    questions=retrieval_config.Questions(
      paths=('package:vtokens/data/quickstart/test.jsonl.gz',)
    ),
    retrievers={'bm25': retrieval_config.Retriever()},
  )
