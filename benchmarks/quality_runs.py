"""Runs the stages of the cells of `answer_quality.py`, each in a process."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import quality_answers
import quality_cells
import quality_training
from quality_cells import CONTENDERS, PROMPT, STAGES, Task

from vtokens.host import errors
from vtokens.host import versions as version_numbers

_RUN = {
  'train': quality_training.train,
  'validate': quality_answers.validate,
  'test': quality_answers.test,
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which cells and stages to measure.

  Attributes:
    contenders: names of `CONTENDERS`.
    rates: only these learning rates; empty for all of a contender.
    seeds: the first one is for the sweep.
    stages: some of `STAGES`.
    passages: numbers of passages shown in tests.
  """

  contenders: Sequence[str] = tuple(CONTENDERS)
  rates: Sequence[float] = ()
  seeds: Sequence[int] = (0, 1)
  stages: Sequence[str] = STAGES
  passages: Sequence[int] = ()


def run_setting(like: Task, choice: Choice) -> None:
  """Measures a setting, contender by contender.

  Args:
    like: has the setting and the sizes.
    choice: what to measure.
  """
  for name in choice.contenders:
    sweep = quality_cells.cells(like, [name], choice.rates, choice.seeds[0])
    for task in sweep:
      _train_and_validate(task, choice)
    chosen = quality_cells.best(sweep)
    if chosen is None:
      continue
    seeds = choice.seeds if name != PROMPT else [0]
    for seed in seeds:
      task = dataclasses.replace(chosen, seed=seed)
      _train_and_validate(task, choice)
      for shown in choice.passages:
        measure(task.at('test', shown), choice.stages)


def _train_and_validate(task: Task, choice: Choice) -> None:
  if task.contender != PROMPT:
    measure(task.at('train'), choice.stages)
    every = (
      (cell, cell.read())
      for seed in choice.seeds
      for cell in quality_cells.cells(task, CONTENDERS, (), seed)
      if cell.contender != PROMPT
    )
    quality_cells.check_same((cell, read) for cell, read in every if read)
  measure(task.at('validate'), choice.stages)


def measure(task: Task, stages: Sequence[str] = STAGES) -> None:
  """Runs a stage in its own process, unless its result is there.

  Trains again if the stage needs snapshots that are not there.

  Args:
    task: the stage.
    stages: other stages are left out.

  Raises:
    errors.UserError: the process failed, or the result is of other settings.
  """
  if task.stage not in stages or task.read() is not None:
    return
  if task.stage != 'train' and not quality_training.has_snapshots(task):
    _run(task.at('train'))
  _run(task)


def _run(task: Task) -> None:
  print(task.title, flush=True)
  arguments = json.dumps(dataclasses.asdict(task))
  done = subprocess.run([sys.executable, __file__, arguments])
  if done.returncode:
    raise errors.UserError(
      f'{task.title}: the process ended with status {done.returncode}; its '
      'output is above'
    )


def run_stage(task: Task) -> None:
  """Runs a stage in this process and writes its result."""
  task.write({**_RUN[task.stage](task), 'versions': _versions()})


def _versions() -> dict[str, Any]:
  """What the figures depend on, besides the task."""
  return {
    **version_numbers.packages(),
    **{name: importlib.metadata.version(name) for name in ('peft', 'torch')},
    'python': platform.python_version(),
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
  }


def _processor() -> str:
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return line.split(':', 1)[1].strip()
  return platform.machine()


if __name__ == '__main__':
  run_stage(Task(**json.loads(sys.argv[1])))
