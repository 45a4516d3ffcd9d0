"""Settings of general tasks; `vtokens.evaluation.harness` runs them."""

import dataclasses
import importlib.util
import os
import re
from typing import Annotated, Literal, NoReturn

from annotated_types import Ge, Le

from vtokens.host import errors, paths
from vtokens.settings import schema
from vtokens.settings.field_types import NaturalInt, Path, PositiveInt

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')


@dataclasses.dataclass
class Task(schema.Section):
  """A general task: one of the paper's with a file of questions, or lm-eval's.

  Attributes:
    source: file of the questions: JSON lines, plain or .gz, .xz, .bz2.
    format: kind of questions: boolq (true or false), commonsenseqa or mmlu
      (each with any number of choices), gsm8k (a number, with reasoning).
    shots: solved examples before each question. 0 keeps the default of a task
      of lm-eval.
    shots_source: file of the solved examples; never `source`.
    max_questions: number of questions to draw, by the seed; 0 for all. For a
      group of lm-eval, the number for each of its tasks.
    max_new_tokens: longest answer, in tokens, of gsm8k and of tasks of lm-eval
      that set no length.
    harness: name of a task, tag or group of lm-eval, or path of its YAML file;
      then source, format and shots_source have no effect.
    num_active: number of virtual tokens of each run's table in the prompts; 0
      asks the base alone.
  """

  source: Path = ''
  format: Literal['boolq', 'commonsenseqa', 'mmlu', 'gsm8k'] = 'mmlu'
  shots: Annotated[int, Ge(0), Le(1000)] = 0
  shots_source: Path = ''
  max_questions: NaturalInt = 0
  max_new_tokens: PositiveInt = 256
  harness: Path = ''
  num_active: NaturalInt = 0


def check_task(name: str, task: Task) -> None:
  """Raises a `UserError` if the settings of a task contradict themselves."""

  def fail(field: str, expected: str) -> NoReturn:
    raise errors.UserError(
      f'config.tasks[{name}].{field}: expected {expected}, got '
      f'{getattr(task, field)!r}'
    )

  if not _NAME.fullmatch(name):
    raise errors.UserError(
      f'config.tasks[{name}]: the name of a task becomes that of a file; '
      'expected letters, digits, and _ . - after the first'
    )
  if importlib.util.find_spec('lm_eval') is None:
    raise errors.UserError(
      f'config.tasks[{name}]: tasks are run by lm-evaluation-harness, which is '
      "not installed; try: pip install 'lm-eval>=0.4.13,<0.5'"
    )
  if task.harness:
    for field in ('source', 'shots_source'):
      if getattr(task, field):
        fail(field, 'nothing beside harness, whose tasks have their own data')
    return
  if not task.source:
    fail('source', 'a file of questions')
  if task.shots and not task.shots_source:
    fail('shots_source', f'a file to draw the {task.shots} shots from')
  if task.shots_source and not task.shots:
    fail('shots', 'at least 1, since shots_source is set')
  if task.shots and _same_file(task.source, task.shots_source):
    fail(
      'shots_source', 'another file than source, whose answers it would tell'
    )


def _same_file(a: str, b: str) -> bool:
  return os.path.realpath(paths.resolve(a)) == os.path.realpath(
    paths.resolve(b)
  )
