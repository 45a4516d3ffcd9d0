"""BM25 on a laptop, offline: 526 passages of Wikipedia, 300 questions.

The questions are the quickstart's test file. The passages are the gold passages
and distractors of these questions. vtokens/data/quickstart/README.md gives
source and licence.
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
