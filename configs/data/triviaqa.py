"""TriviaQA, open: training and test questions.

docs/data.md says where to get its files. Append `:raw` to the config's path for
the published files without retrieved passages.
"""

from vtokens.data.build import build_config
from vtokens.recipes import spring_data


def get_config(variant: str = '') -> build_config.Config:
  """Sizes are the paper's; see `vtokens/recipes/spring_data.py`."""
  return spring_data.paper_set('triviaqa', variant)
