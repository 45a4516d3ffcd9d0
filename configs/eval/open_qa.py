"""The table of configs/quickstart.py on 350 questions of seven sets.

The table was not trained on five of the sets. Passages may lack the answer; see
vtokens/data/open_qa/README.md.
"""

from vtokens import config
from vtokens.evaluation import eval_config


def get_config() -> eval_config.Config:
  """Closed book and the paper's table 1, over all axes; for a laptop."""
  return eval_config.Config(
    workdir='runs/open-qa-eval',
    runs=('runs/quickstart',),
    data=eval_config.Data(
      sources=('package:vtokens/data/open_qa/questions.jsonl.gz',),
      max_prefix_tokens=1536,
    ),
    conditions=('closed_book', 'concat', 'prompt', 'tokens'),
    num_active=(50, 1, 5, 20),
    num_passages=(3, 0, 1, 5),
    retrievers=('bm25', 'minilm'),
    decode=config.Decode(batch_size=25, max_new_tokens=16),
  )
