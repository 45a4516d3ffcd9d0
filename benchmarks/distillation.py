r"""Exact match and time per step, with and without a teacher.

    python benchmarks/distillation.py --directory DIR --json FILE

It uses SmolLM2, the questions and the settings of `configs/quickstart.py`
(extra `quickstart`). All contenders have the same examples in the same order;
each is one or more settings of `vtokens.train`. A table that is in DIR is not
trained again, so a run that was stopped continues with the next contender.

  answers        no teacher
  all_tokens     a second draw, which has all tokens; no teacher
  self_0.5 ...   the same, and it teaches the other draw
                 (`train.distill.weight`)
"""

import json
import pathlib
import statistics
import time
from typing import Any

import numpy as np
import quickstart_runs
from absl import app, flags

from vtokens import config
from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS, TokenTable

_CONTENDERS = flags.DEFINE_list(
  'contenders', ['answers', 'all_tokens', 'self_0.5', 'self_0.9'], 'Which.'
)
_STEPS = flags.DEFINE_integer('steps', 112, 'Of training, 8 examples each.')
_QUESTIONS = flags.DEFINE_integer('questions', 200, 'To score with.')
_K = flags.DEFINE_list('k', ['1', '5', '50'], 'Virtual tokens, to score with.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of data and draws.')
_DIRECTORY = flags.DEFINE_string('directory', None, 'For tables.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')


def configure(contender: str, directory: str) -> config.Config:
  """The quickstart's config, with the contender's settings."""
  cfg = quickstart_runs.load_config(directory, _QUESTIONS.value, _SEED.value)
  cfg.optim.schedule = 'cosine'
  cfg.train.num_steps = _STEPS.value
  name, _, weight = contender.partition('_')
  if contender == 'all_tokens' or name == 'self':
    cfg.virtual_tokens.draws_per_example = 2
    cfg.virtual_tokens.always_all = True
  if name == 'self':
    cfg.train.distill.weight = float(weight)
  return cfg


def train(cfg: config.Config) -> tuple[np.ndarray, list[float], list[float]]:
  """Returns the table, and loss and seconds of each step."""
  made = quickstart_runs.Setting(cfg).train()
  next(made)
  losses, seconds = [], []
  for number in range(cfg.train.num_steps):
    began = time.monotonic()
    loss, table = next(made)
    losses.append(loss)
    seconds.append(time.monotonic() - began)
    print(f'step {number + 1}: {loss:.3f}, {seconds[-1]:.1f} s', flush=True)
  made.close()
  return table, losses, seconds


def run(contender: str, directory: pathlib.Path) -> dict[str, Any]:
  """Trains and scores a contender, or reads what is there."""
  found = directory / f'{contender}.json'
  if found.exists():
    row: dict[str, Any] = json.loads(found.read_text())
    return row
  cfg = configure(contender, str(directory))
  kept = directory / f'{contender}.npz'
  if not kept.exists():
    table, losses, seconds = train(cfg)
    np.savez(kept, table=table, losses=losses, seconds=seconds)
  saved = np.load(kept)
  setting = quickstart_runs.Setting(cfg)
  tokens = TokenTable('table', saved['table'], setting.assembler)
  counts = [int(k) for k in _K.value]
  scores = setting.score(
    [PromptVariant(f'{k}', CONDITIONS['tokens'], tokens, k) for k in counts]
  )
  row = {
    'contender': contender,
    # The first step with each shape compiles.
    'median_step_seconds': statistics.median(saved['seconds']),
    'train_seconds': float(saved['seconds'].sum()),
    'k': dict(zip(_K.value, scores, strict=True)),
  }
  found.write_text(json.dumps(row))
  return row


def main(argv: list[str]) -> None:
  del argv
  assert _DIRECTORY.value is not None
  directory = pathlib.Path(_DIRECTORY.value)
  directory.mkdir(parents=True, exist_ok=True)
  rows = []
  for contender in _CONTENDERS.value:
    rows.append(run(contender, directory))
    print(json.dumps(rows[-1]), flush=True)
  if _JSON.value:
    settings = {
      'steps': _STEPS.value,
      'questions': _QUESTIONS.value,
      'seed': _SEED.value,
    }
    pathlib.Path(_JSON.value).write_text(
      json.dumps({**settings, 'rows': rows}, indent=2) + '\n'
    )


if __name__ == '__main__':
  flags.mark_flag_as_required('directory')
  app.run(main)
