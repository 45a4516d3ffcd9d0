"""BM25 over a folder of your own text files; see docs/own_documents.md."""

from vtokens.retrieval import retrieval_config


def get_config() -> retrieval_config.Config:
  """Takes seconds for some thousand passages."""
  return retrieval_config.Config(
    workdir='retrieved',
    index_dir='index',
    top_k=5,
    # Plain lines, in the order of the questions, for head and tail.
    compress=False,
    corpus=retrieval_config.Corpus(paths=('passages.jsonl',)),
    questions=retrieval_config.Questions(paths=('questions.jsonl',)),
    retrievers={'bm25': retrieval_config.Retriever()},
  )
