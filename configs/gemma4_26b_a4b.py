"""Gemma 4 26B-A4B, instruction-tuned; the text part.

A token uses 3.8 of 25.2 billion parameters. Append `:paper` to the config's
path for the paper's hyperparameters; see `vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('google/gemma-4-26B-A4B-it', variant)
