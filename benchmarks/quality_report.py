"""Sums up the cells of `answer_quality.py`.

A contender's figures are those of its rate with the lowest validation loss. The
mean over its seeds, question by question, is what intervals are of: they cover
other questions, not other seeds.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import quality_cells
from quality_cells import CONTENDERS, LORA, PROMPT, Task

from vtokens.evaluation.reporting import statistics

RESAMPLES = 10_000
# Share of the final EM that the time to reach it is measured for.
_NEARLY = 0.9


def share_of_gain(
  prompt: Sequence[np.ndarray],
  contender: Sequence[np.ndarray],
  lora: Sequence[np.ndarray],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> tuple[float, float, float]:
  """(EM - EM_prompt) / (EM_LoRA - EM_prompt), with its 95 % interval.

  Percentile bootstrap: within each data set questions are drawn with
  replacement, the same ones for all three.

  Args:
    prompt: for each data set EM of its questions, 0 to 1.
    contender: likewise, of the same questions.
    lora: likewise.
    resamples: how often to draw.
    seed: of the draws.

  Returns:
    The share and both ends, in percent; nan where LoRA has no gain.

  Raises:
    ValueError: the three have different questions.
  """
  shapes = {tuple(map(len, one)) for one in (prompt, contender, lora)}
  if len(shapes) > 1:
    raise ValueError(f'groups of sizes {sorted(shapes)}: expected the same')
  columns = [
    np.stack(parts, axis=1)
    for parts in zip(prompt, contender, lora, strict=True)
  ]
  rng = np.random.default_rng(seed)
  means = np.zeros((resamples, 3))
  for group in columns:
    size = len(group)
    counts = rng.multinomial(size, np.full(size, 1 / size), resamples)
    means += counts @ group / size / len(columns)
  drawn = _share(means)
  low, high = np.percentile(drawn, [2.5, 97.5])
  center = np.mean([group.mean(axis=0) for group in columns], axis=0)
  return float(_share(center[None])[0]), float(low), float(high)


def _share(means: np.ndarray) -> np.ndarray:
  """Shares of rows of means of prompt, contender and LoRA, in percent."""
  with np.errstate(divide='ignore', invalid='ignore'):
    found: np.ndarray = (
      100 * (means[:, 1] - means[:, 0]) / (means[:, 2] - means[:, 0])
    )
  return found


def time_to_reach(
  validations: Sequence[Mapping[str, Any]],
  snapshots: Sequence[Mapping[str, Any]],
  clock: str,
) -> float | None:
  """Seconds to the first validation with 90 % of the last one's EM.

  Args:
    validations: step and EM of each.
    snapshots: step and seconds of each.
    clock: key of the seconds.

  Returns:
    The seconds; None if the last validation has EM 0.
  """
  final = validations[-1]['em']
  if not final:
    return None
  step = next(v['step'] for v in validations if v['em'] >= _NEARLY * final)
  return next(float(s[clock]) for s in snapshots if s['step'] == step)


def summarise(
  sweeps: Mapping[str, Sequence[Task]],
  seeds: Sequence[int],
  passages: Sequence[int],
) -> dict[str, Any]:
  """Sums up a setting.

  Args:
    sweeps: cells of each contender's rates, with one seed.
    seeds: seeds to look for.
    passages: numbers of passages shown in tests.

  Returns:
    `sweep`, a row for each rate of each contender that was validated; `rows`, a
    row for each contender, k and number of passages that was tested.

  Raises:
    errors.UserError: contenders were tested with different questions.
  """
  tested: dict[tuple[str, int, int], dict[str, Any]] = {}
  sweep_rows: list[dict[str, Any]] = []
  best: list[Task] = []
  for name, sweep in sweeps.items():
    for task in sweep:
      sweep_rows += _sweep_row(task)
    validated = [task for task in sweep if task.at('validate').read()]
    chosen = quality_cells.best(validated)
    if chosen is None:
      continue
    best.append(chosen)
    for shown in passages:
      for k, found in _tested(chosen, seeds, shown).items():
        tested[name, k, shown] = {
          'contender': name,
          'k': k,
          'passages': shown,
          'rate': chosen.rate,
          'rates_tried': len(validated),
          **found,
        }
  for shown in passages:
    tests = [task.at('test', shown) for task in best]
    quality_cells.check_same((t, found) for t in tests if (found := t.read()))
  groups = {key: row.pop('groups') for key, row in tested.items()}
  for (name, k, shown), row in tested.items():
    own = groups[name, k, shown]
    row |= _intervals(own)
    # With the same number of passages.
    sides = [groups.get((side, 0, shown)) for side in (PROMPT, LORA)]
    if all(sides) and name not in (PROMPT, LORA):
      prompt, lora = (side['em'] for side in sides if side)
      row['share'] = share_of_gain(prompt, own['em'], lora)
  return {'sweep': sweep_rows, 'rows': list(tested.values())}


def _sweep_row(task: Task) -> list[dict[str, Any]]:
  result = task.at('validate').read()
  if result is None or task.contender == PROMPT:
    return []
  trained = task.at('train').read() or {}
  last = result['validations'][-1]
  return [
    {
      'contender': task.contender,
      'rate': task.rate,
      'seed': task.seed,
      'questions': result['questions'],
      'loss': last['loss'],
      'em': last['em'],
      'f1': last['f1'],
      'minutes': trained['seconds'] / 60,
      'cpu_minutes': trained['cpu_seconds'] / 60,
      'validations': result['validations'],
      'versions': result['versions'],
    }
  ]


def _tested(
  chosen: Task, seeds: Sequence[int], shown: int
) -> dict[int, dict[str, Any]]:
  """Values of the tests of the chosen rate, by k."""
  found: dict[int, dict[str, Any]] = {}
  over = [0] if chosen.contender == PROMPT else seeds
  runs = []
  for seed in over:
    task = dataclasses.replace(chosen, seed=seed)
    result = task.at('test', shown).read()
    if result is not None:
      runs.append((task, result))
  if not runs:
    return {}
  for k in map(int, runs[0][1]['k']):
    names = runs[0][1]['datasets']
    groups = {}
    for metric in ('em', 'f1'):
      values = np.mean([run['k'][str(k)][metric] for _, run in runs], axis=0)
      groups[metric] = [
        values[np.array(names) == name] for name in sorted(set(names))
      ]
    found[k] = {
      'seeds': [task.seed for task, _ in runs],
      'em_by_seed': [
        100 * float(np.mean(run['k'][str(k)]['em'])) for _, run in runs
      ],
      'condition': runs[0][1]['condition'],
      'questions': len(names),
      'versions': runs[0][1]['versions'],
      'groups': groups,
      **_training(runs[0][0]),
    }
  return found


def _training(task: Task) -> dict[str, Any]:
  """Cost of the training of a cell."""
  trained = task.at('train').read()
  validated = task.at('validate').read()
  if trained is None or validated is None:
    return {'trained_numbers': 0}
  row = {
    'trained_numbers': trained['trained_numbers'],
    'minutes': trained['seconds'] / 60,
    'cpu_minutes': trained['cpu_seconds'] / 60,
    'peak_gib_of_process': trained['peak_bytes_of_process'] / 2**30,
    'peak_gib_above_weights': trained['peak_bytes_above_weights'] / 2**30,
  }
  nearly = time_to_reach(
    validated['validations'], trained['snapshots'], 'cpu_seconds'
  )
  return row | {'cpu_minutes_to_90': None if nearly is None else nearly / 60}


def _intervals(groups: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Any]:
  row: dict[str, Any] = {}
  for metric, values in groups.items():
    low, high = statistics.bootstrap_intervals(
      [group[:, None] for group in values], resamples=RESAMPLES, seed=0
    )
    row[metric] = 100 * statistics.macro_mean(values)
    row[f'{metric}_interval'] = [100 * float(low[0]), 100 * float(high[0])]
  return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as a table in Markdown."""
  lines = [
    '| | k | passages | EM | F1 | share of the gain | rate | seeds | numbers '
    '| CPU minutes | to 90 % | GiB |',
    '| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |',
  ]
  for row in rows:
    numbers = row['trained_numbers']
    cells = [
      CONTENDERS[row['contender']].text
      + (f' (`{row["condition"]}`)' if row['contender'] == PROMPT else ''),
      str(row['k'] or ''),
      str(row['passages']),
      _with_interval(row['em'], row['em_interval']),
      _with_interval(row['f1'], row['f1_interval']),
      _percent(row.get('share')),
      f'{row["rate"]:g} of {row["rates_tried"]}' if numbers else '',
      str(len(row['seeds'])) if numbers else '',
      f'{numbers:,}' if numbers else '',
      _minutes(row.get('cpu_minutes')),
      _minutes(row.get('cpu_minutes_to_90')),
      f'{row["peak_gib_of_process"]:.1f}' if numbers else '',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _with_interval(value: float, interval: Sequence[float]) -> str:
  return f'{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]'


def _percent(share: Sequence[float] | None) -> str:
  if share is None or not all(map(math.isfinite, share)):
    return ''
  return f'{share[0]:.0f} % [{share[1]:.0f}, {share[2]:.0f}]'


def _minutes(value: float | None) -> str:
  return '' if value is None else f'{value:.0f}'
