"""E5-large over the 21 million passages of DPR's Wikipedia.

For an accelerator: docs/retrieval.md says what it takes.
"""

from vtokens.retrieval import config


def get_config() -> config.Config:
  """Put your files under data/."""
  return config.Config(
    workdir='runs/wiki_e5',
    index_dir='data/wiki_index',
    corpus=config.Corpus(paths=('data/psgs_w100.tsv.gz',)),
    # Each chunk reads all of the index once.
    questions=config.Questions(
      paths=('data/questions.jsonl.gz',), chunk_size=10_000
    ),
    retrievers={
      'e5-large': config.Retriever(
        kind='dense',
        dense=config.Dense(
          model='intfloat/e5-large-v2',
          dtype='float16',
          storage='float16',
          batch_size=256,
        ),
      ),
    },
  )
