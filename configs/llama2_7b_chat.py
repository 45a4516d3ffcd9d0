"""Llama 2 7B Chat, a base of the paper.

Append `:paper` to the config's path for the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('meta-llama/Llama-2-7b-chat-hf', variant)
