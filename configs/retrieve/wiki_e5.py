"""E5-large over the 21 million passages of DPR's Wikipedia.

It needs an accelerator; docs/retrieval.md gives its cost.
"""

from vtokens.retrieval import retrieval_config


def get_config() -> retrieval_config.Config:
  """Put your files under data/."""
  return retrieval_config.Config(
    workdir='runs/wiki_e5',
    index_dir='data/wiki_index',
    corpus=retrieval_config.Corpus(paths=('data/psgs_w100.tsv.gz',)),
    # Each chunk reads the whole index once.
    questions=retrieval_config.Questions(
      paths=('data/questions.jsonl.gz',), chunk_size=10_000
    ),
    retrievers={
      'e5-large': retrieval_config.Retriever(
        kind='dense',
        dense=retrieval_config.Dense(
          model='intfloat/e5-large-v2',
          dtype='float16',
          storage='float16',
          batch_size=256,
        ),
      ),
    },
  )
