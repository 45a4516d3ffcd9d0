"""BM25 over the passages of the quickstart data, for its test questions."""

from vtokens.retrieval import config

_DATA = 'package:vtokens/data/quickstart'


def get_config() -> config.Config:
  """X."""
  return config.Config()
