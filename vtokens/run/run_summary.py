"""The result of a run: summary.json, its picture, and what is printed."""

import math
import resource
import sys
from typing import Any

from vtokens import config
from vtokens.host import plots, writers
from vtokens.run import tracking
from vtokens.run.workdir import RunDir
from vtokens.serving import trained_file

# Quantile of the normal distribution, for 95 %.
_Z = 1.959964


def combine_scores(
  untrained: dict[str, dict[str, Any]], by_k: dict[int, dict[str, Any]]
) -> dict[str, Any]:
  """Joins the scores of a run as summary.json has them.

  Args:
    untrained: condition -> scores of the base.
    by_k: number of virtual tokens -> scores, in rising order.

  Returns:
    `conditions`, where `tokens` has the scores of the largest k, and `k`.
  """
  tokens = {'tokens': by_k[max(by_k)]} if by_k else {}
  return {
    'conditions': {**untrained, **tokens},
    'k': {
      str(k): {name: value for name, value in scores.items() if name != 'n'}
      for k, scores in by_k.items()
    },
  }


def write(run_dir: RunDir, summary: dict[str, Any]) -> None:
  """Draws training.png and writes summary.json, which ends the run."""
  plots.plot_run(
    run_dir.path / 'training.png',
    tracking.read_metrics(run_dir.path / 'metrics.jsonl'),
    summary,
  )
  run_dir.finish(summary)


def report(summary: dict[str, Any], workdir: str) -> None:
  """Prints the result of a run, and what can be done with it."""
  kind: config.Kind = 'table' if 'table_sha256' in summary else 'kv'
  file = trained_file.NAMES[kind]
  untrained = dict(summary['conditions'])
  untrained.pop('tokens', None)
  by_k = {
    f'tokens, k={k}': {**scores, 'n': summary['conditions']['tokens']['n']}
    for k, scores in summary['k'].items()
  }
  if by_k:
    writers.say(format_scores('result', {**untrained, **by_k}))
  writers.say(
    f'{summary["steps"]} steps in {summary["train_seconds"]:.0f} s, '
    f'{summary["total_seconds"]:.0f} s in all, peak memory '
    f'{summary["peak_rss_gib"]:.1f} GiB\n'
    f'written to {workdir}: {file}, summary.json, training.png, metrics.jsonl, '
    'predictions/'
  )


def format_scores(title: str, scores: dict[str, dict[str, Any]]) -> str:
  """Formats a table: one line per condition, EM and F1 in percent.

  EM has its 95 % confidence interval (Wilson's). F1 of refusals is shown if
  questions without an answer were asked.
  """
  width = max(map(len, [title, *scores]))
  head = f'{title:<{width}}     EM  95 % interval     F1      n'
  if any('refusals' in row for row in scores.values()):
    head += '  F1 of refusals'
  lines = [head]
  for name, row in scores.items():
    line = (
      f'{name:<{width}}  {row["em"]:5.1f}  {_interval(row)}  {row["f1"]:5.1f}  '
      f'{row["n"]:5d}'
    )
    if 'refusals' in row:
      line += f'  {row["refusals"]["f1"]:14.1f}'
    lines.append(line)
  return '\n'.join(lines)


def _interval(row: dict[str, Any]) -> str:
  """Wilson's interval of EM, a share of n questions; blank without any.

  Formula: E. B. Wilson, Probable inference, the law of succession, and
  statistical inference, 1927.
  """
  share, n = row['em'] / 100, row['n']
  if not n:
    return ' ' * 13
  extra = _Z**2 / n
  centre = (share + extra / 2) / (1 + extra)
  half = _Z * math.sqrt((share * (1 - share) + extra / 4) / n) / (1 + extra)
  low, high = (
    100 * min(max(x, 0.0), 1.0) for x in (centre - half, centre + half)
  )
  return f'[{low:4.1f}, {high:5.1f}]'


def peak_rss_gib() -> float:
  """Measures the largest resident memory of this process so far, in GiB."""
  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == 'darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * unit / 2**30
