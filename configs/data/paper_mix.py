"""The paper's eight training sets and twelve test sets, built by other configs.

Build each with `python -m vtokens.data.build --config configs/data/NAME.py`.
"""

from vtokens.recipes import spring_data


def get_sources() -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Values for data.train and data.test of a training config."""
  return spring_data.paper_mix()
