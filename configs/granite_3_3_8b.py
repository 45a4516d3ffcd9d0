"""Granite 3.3 8B, instruction-tuned.

Append `:paper` to the config's path for the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('ibm-granite/granite-3.3-8b-instruct', variant)
