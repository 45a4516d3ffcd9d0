"""Rows of predictions and reports, made of what lm-eval found."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from vtokens.evaluation.harness import paper_tasks
from vtokens.evaluation.harness.decoder_lm import DecoderLM
from vtokens.evaluation.harness.prepared_tasks import PreparedTask

_METRIC = re.compile(r'(?P<metric>.+),(?P<filter>[^,]+)')


def harness_rows(
  task: PreparedTask, found: Mapping[str, Any], lm: DecoderLM
) -> list[dict[str, Any]]:
  """A row for each task or group of lm-eval and each of its metrics."""
  notes = list(task.notes)
  if lm.encoder.num_shortened:
    notes.append(
      f'{lm.encoder.num_shortened:,} requests were longer than the base takes '
      'and lost their beginning'
    )
  rows = []
  sizes = {name: size['effective'] for name, size in found['n-samples'].items()}
  subtasks = found['group_subtasks']
  for name, metrics in found['results'].items():
    children = subtasks.get(name, ())
    for key, value in metrics.items():
      parts = _METRIC.fullmatch(key)
      if parts is None or parts['metric'].endswith('_stderr'):
        continue
      if not isinstance(value, int | float):
        continue
      error = metrics.get(f'{parts["metric"]}_stderr,{parts["filter"]}')
      rows.append(
        {
          'task': name,
          'version': str(found['versions'].get(name, '')),
          'shots': found['n-shot'].get(name),
          'n': sizes.get(name, sum(sizes.get(child, 0) for child in children)),
          'metric': parts['metric'],
          'filter': parts['filter'],
          'value': float(value),
          'stderr': error if isinstance(error, float) else None,
          'notes': notes,
        }
      )
  return rows


def question_rows(
  task: PreparedTask, found: Mapping[str, Any], lm: DecoderLM
) -> list[dict[str, Any]]:
  """What was asked of one of the paper's tasks, and what came back."""
  [samples] = found['samples'].values()
  make = _number_row if task.settings.format == 'gsm8k' else _choice_row
  return [
    {
      'id': sample['doc']['id'],
      'question': sample['doc']['question'],
      'answers': sample['doc']['answers'],
      **make(sample, lm),
    }
    for sample in samples
  ]


def _choice_row(sample: Mapping[str, Any], lm: DecoderLM) -> dict[str, Any]:
  choices, gold = sample['doc']['choices'], sample['doc']['gold_indices']
  sums = np.array([response[0][0] for response in sample['resps']])
  tokens = np.array([lm.num_tokens(*pair) for pair in sample['arguments']])
  sizes = np.array([len(choice.encode()) for choice in choices])
  picks = {
    'sum': int(np.argmax(sums)),
    'per_token': int(np.argmax(sums / tokens)),
    'per_byte': int(np.argmax(sums / sizes)),
  }
  return {
    'choices': choices,
    'predictions': {name: choices[pick] for name, pick in picks.items()},
    'right': {
      'sum': bool(sample['acc']),
      'per_token': picks['per_token'] in gold,
      'per_byte': bool(sample['acc_bytes']),
    },
    'log_probabilities': [round(float(x), 6) for x in sums],
    'tokens': tokens.tolist(),
  }


def _number_row(sample: Mapping[str, Any], lm: DecoderLM) -> dict[str, Any]:
  [arguments] = sample['arguments']
  found = lm.continuation(*arguments)
  return {
    'text': found.text.strip(),
    'prediction': paper_tasks.final_number(found.text),
    'right': bool(sample['acc']),
    'num_tokens': found.num_tokens,
    'stop': {'until': 'question'}.get(found.stop, found.stop),
  }


def summary(
  task: PreparedTask, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The result of one of the paper's tasks, in percent."""
  notes = list(task.notes)
  by_number = task.settings.format == 'gsm8k'
  right = [row['right'] if by_number else row['right']['sum'] for row in rows]
  # Wilson's interval (1927) is also right for few questions and for accuracies
  # near 0 or 100.
  interval = scipy.stats.binomtest(sum(right), len(right)).proportion_ci(
    0.95, method='wilson'
  )
  if by_number:
    more = {
      'unanswered': percent([row['prediction'] is None for row in rows]),
      'stopped_by_length': percent([row['stop'] == 'length' for row in rows]),
      'mean_tokens': float(np.mean([row['num_tokens'] for row in rows])),
    }
  else:
    repeated = sum(
      len(set(row['choices'])) < len(row['choices']) for row in rows
    )
    if repeated:
      notes.append(f'{repeated:,} questions have a choice twice')
    more = {
      'accuracy_per_token': percent(
        [row['right']['per_token'] for row in rows]
      ),
      'accuracy_per_byte': percent([row['right']['per_byte'] for row in rows]),
      # Of a random choice.
      'guessing': 100.0
      * float(
        np.mean(
          [np.mean([c in r['answers'] for c in r['choices']]) for r in rows]
        )
      ),
    }
  return {
    'task': task.name,
    'format': task.settings.format,
    'source': task.settings.source,
    'shots': task.settings.shots,
    'n': len(rows),
    'accuracy': percent(right),
    'interval': [100.0 * float(interval.low), 100.0 * float(interval.high)],
    'notes': notes,
    **more,
  }


def percent(values: Sequence[bool]) -> float:
  """The share of true values, in percent."""
  return 100.0 * sum(values) / len(values)
