"""Mistral Small 3.2 24B, instruction-tuned; the text part.

Append `:paper` to the config's path for the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring(
    'mistralai/Mistral-Small-3.2-24B-Instruct-2506', variant
  )
