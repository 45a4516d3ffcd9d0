"""Mistral 7B Instruct v0.1, a base of the paper.

Append `:paper` to the config's path for the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('mistralai/Mistral-7B-Instruct-v0.1', variant)
