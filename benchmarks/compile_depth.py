r"""Seconds to compile a training step on this machine, by number of layers.

    python benchmarks/compile_depth.py --model Qwen/Qwen3.5-27B --layers 8,48

Only shapes are compiled: no weights exist. The seconds are of the processor.
"""

import dataclasses
import time
from collections.abc import Sequence

import contenders
import jax
from absl import flags as absl_flags

from vtokens.devices import partitioning
from vtokens.planning import known_models
from vtokens.settings import flags

_MODEL = absl_flags.DEFINE_string(
  'model', 'Qwen/Qwen3.5-27B', 'A known model; see `vtokens plan`.'
)
_LAYERS = absl_flags.DEFINE_list('layers', ['8', '48'], 'Numbers of layers.')


def main(argv: Sequence[str]) -> None:
  del argv
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  task = contenders.Task(
    'packed', '', 'float32', passages=3, batch=8, per_row=2, k=50
  )
  for layers in map(int, _LAYERS.value):
    architecture = dataclasses.replace(
      known_models.read_architecture(_MODEL.value), num_layers=layers
    )
    step, arguments, _, _ = contenders.make_vtokens_step(
      task, architecture, mesh
    )
    began = time.process_time()
    lowered = step.lower(*arguments)
    traced = time.process_time()
    lowered.compile()
    ended = time.process_time()
    print(
      f'{layers} layers: traced in {traced - began:.1f} s, compiled in '
      f'{ended - traced:.1f} s',
      flush=True,
    )


if __name__ == '__main__':
  flags.run(main)
