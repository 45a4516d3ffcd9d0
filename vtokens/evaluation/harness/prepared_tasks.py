"""Tasks of lm-eval, made of settings before the weights are loaded."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task as HarnessTask
from lm_eval.tasks import TaskManager

from vtokens.evaluation.harness import paper_tasks, question_files
from vtokens.evaluation.harness.decoder_lm import RequestEncoder
from vtokens.evaluation.tasks import Task
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors, paths
from vtokens.models.frozen_base import FrozenBase, OpenBase

# Its warnings are about settings that stand in the files of tasks.
logging.getLogger('lm_eval').setLevel(logging.ERROR)
# Otherwise lm-eval bootstraps in forked processes, which JAX's threads forbid.
os.environ.setdefault('DISABLE_MULTIPROC', '1')


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedTask:
  """A task of a config, with its requests built.

  Attributes:
    name: unique in an evaluation.
    settings: of the task.
    tasks: of lm-eval, by their names there; one unless it is a group.
    groups: of lm-eval, by their names.
    samples: numbers of the questions that are asked, by the name of the task;
      tasks that ask all are left out.
    notes: what was left out and why, a sentence each.
  """

  name: str
  settings: Task
  tasks: Mapping[str, HarnessTask]
  groups: Mapping[str, Any]
  samples: Mapping[str, Sequence[int]]
  notes: Sequence[str]

  def forget_responses(self) -> None:
    """Makes the requests as if no model had answered them."""
    for task in self.tasks.values():
      for instance in task.instances:
        instance.resps = []
        instance.filtered_resps = {}


def prepare(name: str, settings: Task, seed: int) -> PreparedTask:
  """Reads the data of a task and builds its requests.

  Args:
    name: of the task.
    settings: its settings, checked.
    seed: of what is drawn.

  Raises:
    errors.UserError: a file or the name of a task of lm-eval is bad, or its
      data cannot be loaded.
  """
  if settings.harness:
    loaded = _load_from_harness(name, settings)
  else:
    loaded = _load_paper(settings, seed)
  tasks, notes, samples = loaded['tasks'], [], {}
  for label, task in tasks.items():
    total = len(task.eval_docs)
    if settings.harness:
      _check_supported(name, task)
      if 0 < settings.max_questions < total:
        samples[label] = question_files.draw_some(
          total, settings.max_questions, seed
        )
        notes.append(
          f'{label}: {settings.max_questions:,} of {total:,} questions, drawn '
          'by the seed (max_questions)'
        )
    else:
      notes += [
        *task.dataset.notes,
        *paper_tasks.left_out(settings.format, list(task.eval_docs)),
      ]
    if settings.shots or task.config.num_fewshot is None:
      task.set_config('num_fewshot', settings.shots)
    task.set_fewshot_seed(seed)
    task.build_all_requests(samples=samples.get(label), rank=0, world_size=1)
    # lm-eval would build the same requests again for each model.
    setattr(task, 'build_all_requests', lambda **unused: None)  # noqa: B010
  return PreparedTask(name, settings, tasks, loaded['groups'], samples, notes)


def _load_paper(settings: Task, seed: int) -> Any:
  file = paths.shipped_configs() / 'tasks' / f'{settings.format}.yaml'
  given = dataclasses.asdict(settings)
  fields = ('source', 'shots', 'shots_source', 'max_questions')
  metadata = {**{field: given[field] for field in fields}, 'seed': seed}
  return TaskManager(include_defaults=False, metadata=metadata).load(
    [str(file)]
  )


@functools.cache
def _manager() -> TaskManager:
  return TaskManager()  # Reads 14,000 files.


def _load_from_harness(name: str, settings: Task) -> Any:
  where = f'config.tasks[{name}].harness'
  found = settings.harness
  is_file = found.endswith(('.yaml', '.yml'))
  if is_file and not pathlib.Path(found).expanduser().is_file():
    raise errors.UserError(f'{where}: there is no file {found}')
  if not is_file and found not in _manager().all_tasks:
    raise errors.UserError(
      f'{where}: lm-eval has no task, tag or group {found!r}; `lm_eval ls '
      'tasks` lists them'
    )
  try:
    return _manager().load([found])
  # The files of tasks are programs, and datasets of the hub may be missing.
  except Exception as e:
    reason = ' '.join(str(e).split())
    raise errors.UserError(
      f'{where}: {found} cannot be loaded: {type(e).__name__}: {reason[:500]}'
    ) from e


def _check_supported(name: str, task: HarnessTask) -> None:
  for flag, what in (
    ('UNSAFE_CODE', 'runs code that the model wrote'),
    ('MULTIMODAL', 'shows pictures or sound'),
  ):
    if getattr(task, flag, False):
      raise errors.UserError(
        f'config.tasks[{name}].harness: the task {task.config.task} {what}, '
        'which is not supported'
      )


def check_fits(
  base: OpenBase | FrozenBase, prepared: Sequence[PreparedTask]
) -> None:
  """Raises if a question of the paper's tasks is too long for the base.

  Raises:
    errors.UserError: with the longest question.
  """
  encoder = RequestEncoder(base)
  for one in prepared:
    if one.settings.harness:
      continue
    lengths: dict[int, str] = {}
    for task in one.tasks.values():
      for instance in task.instances:
        context, more = instance.args
        if isinstance(more, str):
          size = len(encoder.text(context + more))
        else:
          size = len(encoder.text(context)) + one.settings.max_new_tokens
        lengths.setdefault(size, instance.doc['id'])
    longest = max(lengths)
    room = encoder.max_length - one.settings.num_active
    if longest > room:
      raise errors.UserError(
        f'config.tasks[{one.name}]: question {lengths[longest]} has '
        f'{longest:,} tokens with its examples and answer, more than the '
        f'{room:,} that the base has room for beside '
        f'{one.settings.num_active} virtual tokens; fewer shots would help'
      )


def check_tables(
  prepared: Sequence[PreparedTask], tables: Mapping[str, TrainedTokens]
) -> None:
  """Raises a `UserError` if a task asks for tokens that a run has not."""
  for task in prepared:
    size = task.settings.num_active
    for name, table in tables.items():
      if size and not table.trainable.in_suffix:
        raise errors.UserError(
          f'config.tasks[{task.name}].num_active: {name} has keys and values '
          "(virtual_tokens.kind='kv'), which general tasks cannot use; leave "
          'num_active at 0, or leave the run out'
        )
      if size > len(table):
        raise errors.UserError(
          f'config.tasks[{task.name}].num_active: {size} virtual tokens asked '
          f'for, but the table of {name} has {len(table)}'
        )
