r"""What settings of training do for the quickstart's table.

    python benchmarks/quickstart_levers.py --directory DIR --json FILE

Each contender is `configs/quickstart.py` with other settings. It is trained
with one seed and scored on the 200 validation questions, so that
no setting is chosen by test questions. The standard error of an EM is about 3.
A contender that is finished in the directory is read.
"""

import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import quickstart_runs
from absl import flags as absl_flags

from vtokens import config
from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.settings import flags

# A single token, on which all training is spent.
_ONE = {
  'virtual_tokens.num_virtual_tokens': 1,
  'virtual_tokens.draws_per_example': 1,
  'virtual_tokens.always_all': False,
  'virtual_tokens.draw': 'uniform',
  'virtual_tokens.num_active': 1,
  'eval.num_active': (1,),
}
CONTENDERS: Mapping[str, Mapping[str, Any]] = {
  'quickstart': {},
  'steps_40': {'train.num_steps': 40},
  'one_token': _ONE,
  'one_token_rate_5e-2': {**_ONE, 'optim.learning_rate': 5e-2},
  'all_tokens_teach_few': {'train.distill.weight': 0.5},
  'gold_passages_teach': {
    'train.distill.weight': 0.5,
    'train.distill.passages': 'gold',
  },
}

_DIRECTORY = absl_flags.DEFINE_string('directory', None, 'Of all contenders.')
_CONTENDERS = absl_flags.DEFINE_list('contenders', list(CONTENDERS), 'Which.')
_K = absl_flags.DEFINE_list('k', ['1', '50'], 'Virtual tokens in answers.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')


def configure(contender: str, directory: pathlib.Path) -> config.Config:
  """The quickstart's config with the settings of a contender."""
  sys.path.insert(0, str(quickstart_runs.CONFIGS))
  import quickstart

  cfg: config.Config = quickstart.get_config()
  cfg.workdir = str(directory)
  cfg.eval.max_validation = 0
  for path, value in CONTENDERS[contender].items():
    *sections, field = path.split('.')
    section: Any = cfg
    for name in sections:
      section = getattr(section, name)
    setattr(section, field, value)
  return cfg


def run(contender: str, directory: pathlib.Path) -> dict[str, Any]:
  """Trains and scores a contender, or reads what it scored."""
  found = directory / f'{contender}.json'
  if found.exists():
    row: dict[str, Any] = json.loads(found.read_text())
    return row
  cfg = configure(contender, directory)
  setting = quickstart_runs.Setting(cfg)
  began = time.process_time()
  made = setting.train()
  next(made)
  losses: list[float] = []
  for number in range(1, cfg.train.num_steps + 1):
    loss, table = next(made)
    losses.append(loss)
    print(f'{contender}, step {number}: {loss:.3f}', flush=True)
  made.close()
  minutes = (time.process_time() - began) / 60
  tokens = TrainedTokens('table', table, setting.assembler)
  counts = [k for k in map(int, _K.value) if k <= len(table)]
  scores = setting.score(
    [PromptVariant(f'{k}', CONDITIONS['tokens'], tokens, k) for k in counts],
    setting.validation,
  )
  row = {
    'contender': contender,
    'settings': CONTENDERS[contender],
    'cpu_minutes': round(minutes, 1),
    'loss': round(float(np.mean(losses[-8:])), 3),
    'k': dict(zip(map(str, counts), scores, strict=True)),
  }
  found.write_text(json.dumps(row))
  return row


def main(argv: Sequence[str]) -> None:
  del argv
  assert _DIRECTORY.value is not None
  directory = pathlib.Path(_DIRECTORY.value)
  directory.mkdir(parents=True, exist_ok=True)
  rows = [run(contender, directory) for contender in _CONTENDERS.value]
  for row in rows:
    print(json.dumps(row), flush=True)
  if _JSON.value:
    text = json.dumps({'rows': rows}, indent=2)
    pathlib.Path(_JSON.value).write_text(f'{text}\n')


if __name__ == '__main__':
  absl_flags.mark_flag_as_required('directory')
  flags.run(main)
