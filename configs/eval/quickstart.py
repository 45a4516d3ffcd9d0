"""The table of configs/quickstart.py, on its 300 test questions."""

from vtokens import config
from vtokens.evaluation import eval_config


def get_config() -> eval_config.Config:
  """All conditions, some k, one and two passages; for two CPU cores."""
  return eval_config.Config(
    workdir='runs/quickstart-eval',
    runs=('runs/quickstart',),
    data=eval_config.Data(
      sources=('package:vtokens/data/quickstart/test.jsonl.gz',),
      max_prefix_tokens=704,
      max_suffix_tokens=152,
    ),
    conditions=(
      'closed_book',
      'concat',
      'plain',
      'prompt',
      'chat_prompt',
      'tokens',
      'tokens_closed_book',
    ),
    num_active=(50, 1, 5, 20),
    num_passages=(2, 0, 1),
    # The data have the gold passage first.
    shuffle_passages=True,
    decode=config.Decode(batch_size=40, max_new_tokens=12),
  )
