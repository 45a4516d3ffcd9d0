"""Scores on general tasks, without retrieval and without virtual tokens."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats
from etils import epath

from vtokens.devices import distributed
from vtokens.evaluation import choices, reasoning, task_prompts
from vtokens.evaluation.tasks import LoadedTask
from vtokens.host import checksums, json_files, paths, stopping, writers
from vtokens.models.frozen_base import FrozenBase, OpenBase

# How the log-probability of an option is normalised before options are
# compared; the first is the paper's.
_NORMALISATIONS = ('sum', 'per_token', 'per_byte')


def run_tasks(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  loaded: Sequence[LoadedTask],
  *,
  seed: int,
  batch_size: int,
  directory: epath.PathLike,
  stop: stopping.StopRequest,
) -> dict[str, Any]:
  """Scores a base on general tasks.

  A task that is finished is not computed again: what it found is in
  `directory/NAME.json`, with all that it depends on, and the answers one by one
  in `NAME.jsonl`.

  Args:
    base: the frozen model.
    mesh: the devices.
    loaded: the tasks, that fit; see `check_fits`.
    seed: of the questions and examples drawn.
    batch_size: questions at a time.
    directory: where results of this base are written.
    stop: drops the task that is being scored.

  Returns:
    {'tasks': one dict for each}, JSON values; accuracies and shares in
    percent.
  """
  directory = epath.Path(directory)
  results = []
  for task in loaded:
    identity = _identity(base, task, seed)
    result = _finished(directory, task, identity)
    if not distributed.from_first(functools.partial(bool, result)):
      stop.check_together()
      score = _numbers if task.settings.format == 'gsm8k' else _choices
      result, rows = score(base, mesh, task, batch_size=batch_size, stop=stop)
      _write(directory, task, identity, result, rows)
    results.append(result)
  return {'tasks': results}


def format_results(results: Mapping[str, Any]) -> str:
  """A small table: one line per task, accuracies in percent."""
  rows = results['tasks']
  width = max(len('general task'), *(len(row['task']) for row in rows))
  lines = [f'{"general task":<{width}}  shots      n  accuracy  95 % interval']
  for row in rows:
    low, high = row['interval']
    lines.append(
      f'{row["task"]:<{width}}  {row["shots"]:5d}  {row["n"]:5d}  '
      f'{row["accuracy"]:8.1f}  {low:5.1f} to {high:5.1f}'
    )
  return '\n'.join(lines)


def _items(base: OpenBase | FrozenBase, task: LoadedTask) -> list[choices.Item]:
  return [
    choices.make_item(
      base.tokenizer,
      task_prompts.render(task, question),
      question.choices,
      id=question.id,
      group=question.topic,
    )
    for question in task.questions
  ]


def _prompt_ids(
  base: OpenBase | FrozenBase, task: LoadedTask
) -> list[np.ndarray]:
  return [
    choices.prompt_ids(base.tokenizer, task_prompts.render(task, question))
    for question in task.questions
  ]


def check_fits(
  base: OpenBase | FrozenBase, loaded: Sequence[LoadedTask]
) -> None:
  """Raises a `UserError` if a question is longer than the base is made for."""
  for task in loaded:
    where = f'config.tasks[{task.name}]'
    if task.settings.format != 'gsm8k':
      choices.check_fits(base, _items(base, task), where)
      continue
    lengths = [len(ids) for ids in _prompt_ids(base, task)]
    longest = int(np.argmax(lengths))
    choices.check_length(
      base,
      lengths[longest] + task.settings.max_new_tokens,
      f'{where}: question {task.questions[longest].id}',
    )


def _choices(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  task: LoadedTask,
  *,
  batch_size: int,
  stop: stopping.StopRequest,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Result and predictions of a multiple-choice task."""
  items = _items(base, task)
  scores = choices.score(
    base,
    mesh,
    items,
    batch_size=batch_size,
    label=task.name,
    stop=stop,
  )
  rows = []
  for question, item, sums in zip(task.questions, items, scores, strict=True):
    tokens = np.array([len(ids) for ids in item.options])
    sizes = np.array([len(choice.encode()) for choice in question.choices])
    values = dict(
      zip(_NORMALISATIONS, (sums, sums / tokens, sums / sizes), strict=True)
    )
    picks = {
      name: question.choices[int(np.argmax(value))]
      for name, value in values.items()
    }
    rows.append(
      {
        'id': question.id,
        'question': question.text,
        'choices': question.choices,
        'answers': question.answers,
        'predictions': picks,
        'right': {n: pick in question.answers for n, pick in picks.items()},
        'log_probabilities': [round(float(x), 6) for x in sums],
        'tokens': tokens.tolist(),
      }
    )
  return _choice_result(task, rows), rows


def _choice_result(
  task: LoadedTask, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Accuracies in percent; that of a guess among the choices beside them."""
  right = {
    name: [row['right'][name] for row in rows] for name in _NORMALISATIONS
  }
  guess = [
    sum(choice in q.answers for choice in q.choices) / len(q.choices)
    for q in task.questions
  ]
  notes = []
  if repeated := sum(
    len(set(q.choices)) < len(q.choices) for q in task.questions
  ):
    notes.append(f'{repeated:,} questions have a choice twice')
  return {
    **common_result(task, right['sum'], notes),
    'accuracy_per_token': _percent(right['per_token']),
    'accuracy_per_byte': _percent(right['per_byte']),
    'guessing': 100.0 * float(np.mean(guess)),
  }


def _numbers(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  task: LoadedTask,
  *,
  batch_size: int,
  stop: stopping.StopRequest,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Result and predictions of gsm8k."""
  answers = reasoning.continue_prompts(
    base,
    mesh,
    _prompt_ids(base, task),
    max_new_tokens=task.settings.max_new_tokens,
    batch_size=batch_size,
    label=task.name,
    stop=stop,
  )
  rows = []
  for question, answer in zip(task.questions, answers, strict=True):
    value = reasoning.final_number(answer.text)
    rows.append(
      {
        'id': question.id,
        'question': question.text,
        'answers': question.answers,
        'text': answer.text,
        'prediction': value,
        'right': reasoning.is_right(value, question.answers),
        'num_tokens': answer.num_tokens,
        'stop': answer.stop,
      }
    )
  return _number_result(task, rows), rows


def _number_result(
  task: LoadedTask, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Accuracy in percent, and how many answers there were none of."""
  return {
    **common_result(task, [row['right'] for row in rows], []),
    'unanswered': _percent([row['prediction'] is None for row in rows]),
    'stopped_by_length': _percent([row['stop'] == 'length' for row in rows]),
    'mean_tokens': float(np.mean([row['num_tokens'] for row in rows])),
  }


def common_result(
  task: LoadedTask, right: Sequence[bool], notes: Sequence[str]
) -> dict[str, Any]:
  """What results of all formats have: n, accuracy in percent, interval."""
  # Wilson's interval (1927): unlike the normal one it is right for few
  # questions and for accuracies near 0 or 100.
  interval = scipy.stats.binomtest(sum(right), len(right)).proportion_ci(
    0.95, method='wilson'
  )
  missing = task_prompts.left_out(task.settings.format, task.questions)
  return {
    'task': task.name,
    'format': task.settings.format,
    'source': task.settings.source,
    'shots': task.settings.shots,
    'n': len(right),
    'accuracy': _percent(right),
    'interval': [100.0 * float(interval.low), 100.0 * float(interval.high)],
    'notes': [*task.notes, *([missing] if missing else []), *notes],
  }


def _percent(values: Sequence[bool]) -> float:
  return 100.0 * sum(values) / len(values)


def _identity(base: FrozenBase, task: LoadedTask, seed: int) -> dict[str, Any]:
  """All that a result depends on."""
  quantised = {'quantize': base.quantize} if base.quantize != 'none' else {}
  return {
    'base': base.fingerprint,
    'tokenizer': base.tokenizer.sha256,
    'dtype': str(base.params['embedding'][...].dtype),
    **quantised,
    'context_length': base.config.context_length,
    'settings': dataclasses.asdict(task.settings),
    'sha256': dict(task.hashes),
    'seed': seed,
  }


def _finished(
  directory: epath.Path, task: LoadedTask, identity: Mapping[str, Any]
) -> dict[str, Any] | None:
  """The result of a task if it was computed before.

  Of another directory too: it is called after the base's path, which may have
  changed.
  """
  others: list[epath.Path] = []
  if paths.exists(directory.parent):
    others = [d for d in sorted(directory.parent.iterdir()) if d != directory]
  for place in (directory, *others):
    path = place / f'{task.name}.json'
    predictions = place / f'{task.name}.jsonl'
    if not paths.exists(path) or not paths.exists(predictions):
      continue
    found = json_files.read(
      path,
      {'identity': dict, 'predictions_sha256': str, 'result': dict},
      'delete it to have the task done again',
    )
    if checksums.has_seal(found) and not checksums.is_sealed(found):
      continue
    data = predictions.read_bytes()
    if (
      _by_content(found['identity']) == _by_content(identity)
      and found['predictions_sha256'] == hashlib.sha256(data).hexdigest()
    ):
      if place != directory and distributed.is_first():
        writers.write_bytes(directory / predictions.name, data)
        writers.write_json(directory / path.name, found)
      return {**found['result'], 'source': task.settings.source}
  return None


def _by_content(identity: Mapping[str, Any]) -> dict[str, Any]:
  """An identity without paths: it has the hashes of the files."""
  settings = {
    key: value
    for key, value in dict(identity.get('settings') or {}).items()
    if key not in ('source', 'shots_source')
  }
  return {**identity, 'settings': settings}


def _write(
  directory: epath.Path,
  task: LoadedTask,
  identity: Mapping[str, Any],
  result: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
) -> None:
  """Writes predictions, and after them what says that they are complete."""
  if not distributed.is_first():
    return
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  writers.write_text(directory / f'{task.name}.jsonl', text)
  writers.write_json(
    directory / f'{task.name}.json',
    checksums.seal(
      {
        'identity': identity,
        'predictions_sha256': hashlib.sha256(text.encode()).hexdigest(),
        'result': result,
      }
    ),
  )
