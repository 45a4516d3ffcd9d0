"""Gemma 2 9B, instruction-tuned.

With `:paper` after its name, the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """The data files that it names, under data/, are yours to put there."""
  return recipes.spring('google/gemma-2-9b-it', variant)
