"""MuSiQue: a test set, whose size the paper does not give.

docs/data.md says where its files are to be had. With `:raw` after its
name, the published files without retrieved passages.
"""

from vtokens import recipes_data
from vtokens.data import build_config


def get_config(variant: str = '') -> build_config.Config:
  """Sizes are the paper's; see `vtokens/recipes_data.py`."""
  return recipes_data.paper_set('musique', variant)
