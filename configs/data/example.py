"""Builds the quickstart's questions, which come with vtokens."""

from vtokens.data.build import build_config

_DATA = 'package:vtokens/data/quickstart'
_SIZES = {'train': 3_000, 'validation': 200, 'test': 300}


def get_config() -> build_config.Config:
  """Takes seconds; vtokens/data/quickstart/README.md describes the data."""
  return build_config.Config(
    name='quickstart',
    splits={
      split: build_config.Split(
        sources=(f'{_DATA}/{split}.jsonl.gz',), expected_records=number
      )
      for split, number in _SIZES.items()
    },
  )
