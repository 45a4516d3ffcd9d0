r"""Summarises where a training step spends its time on a GPU, from a trace.

    python benchmarks/train_step.py --model mistral-7b --dtype bfloat16 \
      --contenders packed --batch 16 --trace traces
    python benchmarks/trace_summary.py --trace traces/packed_16_5.xplane.pb \
      --program traces/packed_16_5.txt --steps 2

A kernel is classified by its name, and by the operation of that name in the
compiled program: its shape and its place in the model.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags
from jax.profiler import ProfileData

from vtokens.settings import flags

_TRACE = absl_flags.DEFINE_string(
  'trace', None, 'An .xplane.pb.', required=True
)
_PROGRAM = absl_flags.DEFINE_string('program', None, 'Its text.', required=True)
_STEPS = absl_flags.DEFINE_integer('steps', 2, 'In the trace.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')

# Patterns of a kernel's name, tried in this order.
_NAMES = (
  ('attention, forward', r'^attend_forward'),
  ('attention, backward', r'^attend_(queries|keys)'),
  ('copies, most of weights', r'^memcpy|^Memcpy'),
  ('zeros', r'^Memset|^loop_broadcast'),
  ('products', r'^(nvjet|cutlass|sm\d+_|cublas|gemm_fusion)'),
)


def kernels(path: str) -> Iterable[tuple[str, float]]:
  """Name and seconds of each kernel that ran on a GPU."""
  for plane in ProfileData.from_file(path).planes:
    if plane.name.startswith('/device:GPU'):
      for line in plane.lines:
        for event in line.events:
          yield event.name, event.duration_ns / 1e9


def operations(program: str) -> dict[str, str]:
  """Name of a kernel -> place of its operation in the model."""
  found = {}
  for line in program.splitlines():
    match = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', line)
    if match:
      found[re.sub(r'[.\-]', '_', match[1])] = match[2]
  return found


def kind(name: str, where: Mapping[str, str]) -> str:
  """The class of a kernel."""
  for title, pattern in _NAMES:
    if re.match(pattern, name):
      return title
  path = where.get(name, '')
  if 'transpose(' in path:
    return 'other, backward'
  return 'other, forward' if path else 'other'


def main(argv: Sequence[str]) -> None:
  del argv
  where = operations(pathlib.Path(_PROGRAM.value).read_text())
  seconds: dict[str, float] = collections.defaultdict(float)
  count: collections.Counter[str] = collections.Counter()
  for name, took in kernels(_TRACE.value):
    title = kind(name, where)
    seconds[title] += took / _STEPS.value
    count[title] += 1
  if not seconds:
    raise SystemExit(f'{_TRACE.value}: no kernel of a GPU is in it')
  total = sum(seconds.values())
  rows: list[dict[str, Any]] = [
    {
      'kind': title,
      'seconds': took,
      'share': took / total,
      'kernels': count[title] / _STEPS.value,
    }
    for title, took in sorted(seconds.items(), key=lambda item: -item[1])
  ]
  print(f'{"":32} {"ms":>8} {"share":>6} {"kernels":>8}')
  for row in rows:
    print(
      f'{row["kind"]:32} {1e3 * row["seconds"]:8.1f} {row["share"]:6.1%} '
      f'{row["kernels"]:8.0f}'
    )
  print(f'{"together":32} {1e3 * total:8.1f}')
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  flags.run(main)
