"""BM25 over the 21 million passages of DPR's Wikipedia.

docs/retrieval.md gives its cost and the source of the files.
"""

from vtokens.retrieval import retrieval_config


def get_config() -> retrieval_config.Config:
  """Put your files under data/."""
  return retrieval_config.Config(
    workdir='runs/wiki_bm25',
    index_dir='data/wiki_index',
    corpus=retrieval_config.Corpus(paths=('data/psgs_w100.tsv.gz',)),
    questions=retrieval_config.Questions(paths=('data/questions.jsonl.gz',)),
    retrievers={'bm25': retrieval_config.Retriever()},
  )
