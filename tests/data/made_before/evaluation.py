"""An evaluation of the run in finished/."""

from vtokens import config
from vtokens.evaluation import config as eval_config


def get_config() -> eval_config.Config:
  """Paths are relative: run it in the directory of this file."""
  return eval_config.Config(
    workdir='evaluation',
    runs=('finished',),
    templates=config.Templates(
      prompt='Q {question} A', instruction='Do {question}'
    ),
    data=eval_config.Data(
      sources=('test.jsonl',), max_prefix_tokens=48, max_suffix_tokens=60
    ),
    conditions=('closed_book', 'prompt', 'tokens'),
    num_active=(4,),
    num_passages=(2, 0),
    decode=config.Decode(batch_size=4, max_new_tokens=3),
    report=eval_config.Report(resamples=50, permutations=50),
  )
