"""Llama 2 7B Chat, a base of the paper.

With `:paper` after its name, the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """The data files that it names, under data/, are yours to put there."""
  return recipes.spring('meta-llama/Llama-2-7b-chat-hf', variant)
