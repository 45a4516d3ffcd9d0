"""Tokens for questions about your own documents; see docs/own_documents.md.

A few dozen questions are too few to learn from alone: they are half of the
training questions, those of the quickstart the other half.
"""

from vtokens import config
from vtokens.recipes import smollm2

_QUICKSTART = 'package:vtokens/data/quickstart'


def get_config() -> config.Config:
  """For two CPU cores, the quickstart's base, and `train.jsonl`."""
  return config.Config(
    workdir='runs/own_documents',
    base=smollm2.base(),
    virtual_tokens=config.VirtualTokens(draw='power', draw_exponent=0.5),
    data=config.Data(
      train=('own=train.jsonl', f'{_QUICKSTART}/train.jsonl.gz'),
      test=('own=test.jsonl',),
      passages=config.Passages(number=(2, 3)),
      mixture=config.Mixture(
        weighting='weights',
        weights={'own': 2.0, 'squad': 1.0, 'entityquestions': 1.0},
      ),
      # A row holds two examples.
      batch_size=8,
      examples_per_row=2,
      max_prefix_tokens=704,
      max_suffix_tokens=152,
      window_batches=32,
      max_answer_tokens=24,
    ),
    optim=config.Optim(learning_rate=1e-2, warmup_steps=10),
    train=config.Train(num_steps=32, validate_every=32, checkpoint_every=8),
    eval=config.Eval(
      batch_size=10,
      num_passages=3,
      max_new_tokens=12,
      num_active=(1, 50),
    ),
  )
