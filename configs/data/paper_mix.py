"""The paper's eight training sets and twelve test sets, as built by the others.

Build each with `python -m vtokens.data.build --config configs/data/NAME.py`.
"""

from vtokens.recipes import spring_data


def get_sources() -> tuple[tuple[str, ...], tuple[str, ...]]:
  """For data.train and for data.test of a training config."""
  return spring_data.paper_mix()
