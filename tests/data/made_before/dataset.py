"""A dataset of the training and validation questions."""

from vtokens.data import build_config


def get_config() -> build_config.Config:
  """Paths are relative: run it in the directory of this file."""
  return build_config.Config(
    name='tiny',
    out='dataset',
    splits={
      'train': build_config.Split(sources=('train.jsonl',)),
      'validation': build_config.Split(sources=('validation.jsonl',)),
    },
    num_shards=1,
  )
