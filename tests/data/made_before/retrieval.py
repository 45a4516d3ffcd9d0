"""Passages of corpus.jsonl for the questions of questions.jsonl, by BM25."""

from vtokens.retrieval import config


def get_config() -> config.Config:
  """Paths are relative: run it in the directory of this file."""
  return config.Config(
    workdir='retrieved',
    index_dir='index',
    top_k=5,
    corpus=config.Corpus(paths=('corpus.jsonl',), shard_size=25),
    questions=config.Questions(paths=('questions.jsonl',), chunk_size=4),
    retrievers={
      'bm25': config.Retriever(),
      'plain': config.Retriever(
        bm25=config.BM25(stemmer='none', stopwords='none', k1=1.5, b=0.75)
      ),
    },
  )
