r"""Exact match by minutes of training, for ways to train virtual tokens.

    pip install -r benchmarks/requirements.txt
    python benchmarks/quality_per_minute.py --json FILE

It uses SmolLM2 and the questions of `configs/quickstart.py`. Each contender
trains alone, in its own process, for the same time from the first step on,
including compilation. Then one evaluator answers the same held-out questions
with each contender's tables at several times.

  draws_1, draws_2, draws_4  vtokens, with 1, 2 or 4 values of k for each pass
                             over the passages
                             (`virtual_tokens.draws_per_example`)
  official                   SPRING's recipe in PyTorch, with the examples
                             of draws_1; packing decides an example's step
  peft                       PEFT's prompt tuning: all tokens, before passages
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import peft
import quickstart_runs
import torch
import transformers
from absl import flags as absl_flags
from quickstart_runs import Steps

from vtokens import config
from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import paths
from vtokens.method import optim
from vtokens.settings import flags

CONTENDERS = ('draws_1', 'draws_2', 'draws_4', 'official', 'peft')

_CONTENDERS = absl_flags.DEFINE_list('contenders', list(CONTENDERS), 'Which.')
_MINUTES = absl_flags.DEFINE_list('minutes', ['2', '4', '6'], 'When to score.')
_QUESTIONS = absl_flags.DEFINE_integer('questions', 200, 'To score with.')
_ACTIVE = absl_flags.DEFINE_list(
  'k', ['5', '50'], 'Virtual tokens, to score with.'
)
_SEED = absl_flags.DEFINE_integer('seed', 0, 'Of data and draws.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')


@dataclasses.dataclass(frozen=True)
class Task:
  """Task of a child process.

  Attributes:
    contender: one of `CONTENDERS`; '' to score.
    directory: directory of the tables: `<contender>.npz`, one after each step.
    minutes: times to score; training ends at the last one.
    questions: number of questions to score.
    active: numbers of virtual tokens to score with.
    seed: seed of data and draws.
  """

  contender: str
  directory: str
  minutes: tuple[float, ...]
  questions: int
  active: tuple[int, ...]
  seed: int


def configure(task: Task) -> config.Config:
  """The config of a contender, or of scoring."""
  cfg = quickstart_runs.load_config(task.directory, task.questions, task.seed)
  if task.contender.startswith('draws_'):
    cfg.virtual_tokens.draws_per_example = int(task.contender[6:])
  else:
    cfg.data.examples_per_row = 1
  if task.contender in ('peft', ''):
    # If tokens precede the passages, the passages are in the suffix.
    cfg.data.max_suffix_tokens += cfg.data.max_prefix_tokens
  if task.contender == 'peft':
    cfg.virtual_tokens.draw = 'fixed'
    cfg.virtual_tokens.position = 'first'
  return cfg


def train_in_torch(setting: quickstart_runs.Setting, with_peft: bool) -> Steps:
  """Trains on the same examples, left-padded; see `Setting.train`."""
  cfg = setting.cfg
  path = pathlib.Path(paths.resolve(cfg.base.path))
  model: Any = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  model.requires_grad_(False)
  model.config.use_cache = False
  vocab_size = model.config.vocab_size
  start = torch.tensor(setting.initial_table(setting.load()))
  if with_peft:
    model = peft.get_peft_model(
      model,
      peft.PromptTuningConfig(
        task_type='CAUSAL_LM', num_virtual_tokens=len(start)
      ),
    )
    [table] = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
      table.copy_(start)
  else:
    table = torch.nn.Parameter(start)

  def loss_of(rows: list[tuple[np.ndarray, int]]) -> torch.Tensor:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, targets) in enumerate(rows):
      ids[i, longest - len(row) :] = torch.from_numpy(row).long()
      mask[i, longest - len(row) :] = 1
      labels[i, -targets:] = ids[i, -targets:]
    if with_peft:
      return model(input_ids=ids, attention_mask=mask, labels=labels).loss
    virtual = ids >= vocab_size
    x = model.get_input_embeddings()(ids.masked_fill(virtual, 0))
    x = x.masked_scatter(
      virtual[..., None], table[ids[virtual] - vocab_size].to(x.dtype)
    )
    return model(inputs_embeds=x, attention_mask=mask, labels=labels).loss

  settings = cfg.optim
  rate = optim.make_schedule(settings, cfg.train.num_steps)
  optimizer = torch.optim.Adam(
    [table], betas=(settings.b1, settings.b2), eps=settings.eps
  )
  rates = [float(rate(i)) for i in range(settings.warmup_steps + 1)]
  with setting.batches().starting_at(0) as stream:
    yield float('nan'), start.numpy().copy()
    for number, host in enumerate(stream):
      loss = loss_of(_rows(host.batch, vocab_size if with_peft else None))
      loss.backward()
      torch.nn.utils.clip_grad_norm_([table], settings.clip_norm)
      optimizer.param_groups[0]['lr'] = rates[min(number, len(rates) - 1)]
      optimizer.step()
      optimizer.zero_grad()
      yield float(loss.detach()), table.detach().numpy().copy()


def _rows(batch: Any, without: int | None) -> list[tuple[np.ndarray, int]]:
  """Ids of each example, its answer last, and the length of the answer.

  Args:
    batch: a batch with one example in a row.
    without: ids from here on are dropped; None to keep all.
  """
  rows = []
  for r in range(len(batch.prefix)):
    targets = batch.targets[r][batch.target_index[r] >= 0]
    ids = np.concatenate(
      [
        batch.prefix[r][batch.prefix_positions[r] >= 0],
        batch.suffix[r][batch.suffix_positions[r] >= 0],
        targets[-1:],
      ]
    )
    rows.append((ids if without is None else ids[ids < without], len(targets)))
  return rows


def train(task: Task) -> None:
  """Trains for the given time; keeps the table after each step."""
  setting = quickstart_runs.Setting(configure(task))
  if task.contender.startswith('draws_'):
    made = setting.train()
  else:
    made = train_in_torch(setting, task.contender == 'peft')
  losses, tables = map(list, zip(next(made), strict=True))
  seconds = [0.0]
  began = time.perf_counter()
  while seconds[-1] < 60 * max(task.minutes):
    loss, table = next(made)
    seconds.append(time.perf_counter() - began)
    losses.append(loss)
    tables.append(table)
  np.savez(
    pathlib.Path(task.directory) / f'{task.contender}.npz',
    seconds=np.array(seconds),
    losses=np.array(losses),
    tables=np.stack(tables),
  )


def score(task: Task) -> None:
  """Answers the questions with all tables; writes scores.json."""
  setting = quickstart_runs.Setting(configure(task))
  variants, rows = [], []
  for file in sorted(pathlib.Path(task.directory).glob('*.npz')):
    name, kept = file.stem, np.load(file)
    for minutes in task.minutes:
      # The last table at that time.
      step = int(np.searchsorted(kept['seconds'], 60 * minutes, 'right')) - 1
      table = TrainedTokens(
        f'{name} {minutes}', kept['tables'][step], setting.assembler
      )
      for k in task.active:
        if name == 'peft' and k < len(table):
          continue  # PEFT trains with all tokens only.
        condition = 'tokens_first' if name == 'peft' else 'tokens'
        variants.append(
          PromptVariant(f'{table.name} {k}', CONDITIONS[condition], table, k)
        )
        rows.append(
          {
            'contender': name,
            'minutes': minutes,
            'steps': step,
            'k': k,
            # Mean of the last ten steps; None if there were fewer.
            'loss': float(kept['losses'][step - 9 : step + 1].mean())
            if step >= 10
            else None,
          }
        )
  for row, found in zip(rows, setting.score(variants), strict=True):
    row |= found
  path = pathlib.Path(task.directory) / 'scores.json'
  path.write_text(json.dumps(rows))


def _print(rows: list[dict[str, Any]]) -> None:
  print(
    f'{"contender":10} {"minutes":>8} {"steps":>6} {"k":>4} {"EM":>6} {"F1":>6}'
  )
  for row in rows:
    print(
      f'{row["contender"]:10} {row["minutes"]:8g} {row["steps"]:6} '
      f'{row["k"]:4} {row["em"]:6.1f} {row["f1"]:6.1f}'
    )


def main(argv: Sequence[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as directory:
    task = Task(
      contender='',
      directory=directory,
      minutes=tuple(map(float, _MINUTES.value)),
      questions=_QUESTIONS.value,
      active=tuple(map(int, _ACTIVE.value)),
      seed=_SEED.value,
    )
    for name in [*_CONTENDERS.value, '']:
      print(name or 'scoring', flush=True)
      child = dataclasses.asdict(dataclasses.replace(task, contender=name))
      subprocess.run([sys.executable, __file__, json.dumps(child)], check=True)
    rows = json.loads((pathlib.Path(directory) / 'scores.json').read_text())
  _print(rows)
  if _JSON.value:
    report = {
      'questions': _QUESTIONS.value,
      'seed': _SEED.value,
      'versions': {
        name: importlib.metadata.version(name)
        for name in ('jax', 'torch', 'transformers', 'peft')
      },
      'rows': rows,
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=2) + '\n')


def _child(text: str) -> None:
  values = json.loads(text)
  task = Task(
    **{**values, **{k: tuple(values[k]) for k in ('minutes', 'active')}}
  )
  (train if task.contender else score)(task)


if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].startswith('{'):
    _child(sys.argv[1])
  else:
    flags.run(main)
