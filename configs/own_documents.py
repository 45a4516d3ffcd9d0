"""Tokens for questions about your own documents; see docs/own_documents.md.

A few dozen questions are too few to learn from alone: they are half of the
training questions, those of the quickstart the other half.
"""

from vtokens import config
from vtokens.settings import config_file


def get_config() -> config.Config:
  """For two CPU cores, the quickstart's base, and `train.jsonl`."""
  cfg: config.Config = config_file.load('configs/quickstart.py', config.Config)
  cfg.workdir = 'runs/own_documents'
  cfg.data.train = ('own=train.jsonl', *cfg.data.train)
  cfg.data.validation = ()
  cfg.data.test = ('own=test.jsonl',)
  cfg.data.passages = config.Passages(number=(2, 3))
  cfg.data.mixture = config.Mixture(
    weighting='weights',
    weights={'own': 2.0, 'squad': 1.0, 'entityquestions': 1.0},
  )
  cfg.eval = config.Eval(
    batch_size=10, num_passages=3, max_new_tokens=12, num_active=(1, 50)
  )
  return cfg
