"""General tasks as a small table on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def format_results(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Small tables: the paper's tasks in percent, then metrics of lm-eval."""
  parts = []
  if rows := found.get('tasks'):
    names = [_label(row, row['task']) for row in rows]
    width = max(len('general task'), *map(len, names))
    lines = [
      f'{"general task":<{width}}  shots      n  accuracy  95 % interval'
    ]
    for name, row in zip(names, rows, strict=True):
      low, high = row['interval']
      lines.append(
        f'{name:<{width}}  {row["shots"]:5d}  {row["n"]:5d}  '
        f'{row["accuracy"]:8.1f}  {low:5.1f} to {high:5.1f}'
      )
    parts += lines
  if rows := found.get('harness'):
    names = [_label(row, f'{row["task"]} {row["metric"]}') for row in rows]
    width = max(len('task of lm-eval'), *map(len, names))
    parts.append(f'{"task of lm-eval":<{width}}      n     value   std. error')
    for name, row in zip(names, rows, strict=True):
      error = row['stderr']
      parts.append(
        f'{name:<{width}}  {row["n"]:5d}  {row["value"]:8.4f}   '
        + ('' if error is None else f'{error:.4f}')
      )
  return '\n'.join(line.rstrip() for line in parts)


def _label(row: Mapping[str, Any], text: str) -> str:
  return (
    f'{text}, {row["table"]} k={row["num_active"]}'
    if row.get('table')
    else text
  )
