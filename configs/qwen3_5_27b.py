"""Qwen3.5 27B; the text part.

Three of four layers are gated delta nets, which keep a state instead of keys
and values. Append `:paper` to the config's path for the paper's
hyperparameters; see `vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('Qwen/Qwen3.5-27B', variant)
