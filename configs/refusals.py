"""The quickstart's base and questions, with a table that learns to refuse.

In two of five examples the passages lack the answer, and the target is "I
don't know." (docs/training.md): `passages.no_answer` chooses them so, or the
only passage that is shown is the wrong one. `benchmarks/refusals.py` measures
what a table learns of it, with passages of its own.
"""

from vtokens import config
from vtokens.settings import config_file


def get_config() -> config.Config:
  """For two CPU cores, like the quickstart."""
  cfg: config.Config = config_file.load('configs/quickstart.py', config.Config)
  cfg.workdir = 'runs/refusals'
  cfg.data.passages = config.Passages(number=(1, 2), no_answer=0.3)
  cfg.data.unanswerable = 'refuse'
  return cfg
