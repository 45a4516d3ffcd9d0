"""DeepSeek-V2-Lite, instruction-tuned: 2.7 billion parameters for each token.

Append `:paper` to the config's path for the paper's hyperparameters; see
`vtokens/recipes/spring_training.py`.
"""

from vtokens import config, recipes


def get_config(variant: str = '') -> config.Config:
  """Expects its data files under data/."""
  return recipes.spring('deepseek-ai/DeepSeek-V2-Lite-Chat', variant)
