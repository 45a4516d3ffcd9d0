"""The four retrievers of the paper side by side (arXiv 2405.19670).

BM25, BGE-base, E5-base and E5-large over DPR's Wikipedia. The paper does not
state versions; these were in use at its time.
"""

from vtokens.retrieval import retrieval_config

_MODELS = {
  'bge-base': 'BAAI/bge-base-en-v1.5',
  'e5-base': 'intfloat/e5-base-v2',
  'e5-large': 'intfloat/e5-large-v2',
}


def get_config() -> retrieval_config.Config:
  """Put your files under data/."""
  retrievers = {'bm25': retrieval_config.Retriever()}
  for name, model in _MODELS.items():
    retrievers[name] = retrieval_config.Retriever(
      kind='dense',
      dense=retrieval_config.Dense(
        model=model, dtype='float16', storage='float16', batch_size=256
      ),
    )
  return retrieval_config.Config(
    workdir='runs/wiki_paper',
    index_dir='data/wiki_index',
    corpus=retrieval_config.Corpus(paths=('data/psgs_w100.tsv.gz',)),
    questions=retrieval_config.Questions(
      paths=('data/questions.jsonl.gz',), chunk_size=10_000
    ),
    retrievers=retrievers,
  )
