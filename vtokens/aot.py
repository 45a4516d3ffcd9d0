"""Programs compiled for TPUs that are not there."""

import collections
import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vtokens import chips, errors, hlo


@dataclasses.dataclass(frozen=True)
class Target:
  """A slice, or several, that exists for the compiler only.

  Attributes:
    name: as libtpu takes it, e.g. v5e:4x4; of several, 2 x v5e:4x4.
    devices: its chips.
    chip: what each can do.
    num_slices: that they are in.
  """

  name: str
  devices: Sequence[Any]
  chip: chips.Chip
  num_slices: int = 1


def find_target(name: str, num_slices: int = 1) -> Target:
  """The slice of a name.

  Args:
    name: as libtpu takes it, e.g. v5e:4x4.
    num_slices: how many of them, joined by the data center's network.

  Raises:
    errors.UserError: libtpu is missing or does not know it.
  """
  # What libtpu would otherwise ask a metadata server, or complain about.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  # It locks the machine's TPUs, which are not used here.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # JAX sees a chip of v4 as one device, which libtpu has to be told.
  options: dict[str, Any] = (
    {'chip_config_name': 'megacore'} if name.startswith('v4:') else {}
  )
  if num_slices > 1:
    options['num_slices'] = num_slices
  if bounds := _part_of_host(name):
    options['chips_per_host_bounds'] = bounds
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    )
  except RuntimeError as e:
    raise errors.UserError(
      f'--topology {name}: {str(e).splitlines()[0]}; expected e.g. v5e:4x4, '
      "v5p:2x2x4, v6e:4x4 or v4:2x2x4, and libtpu (pip install 'vtokens[plan]')"
    ) from None
  devices: Sequence[Any] = found.devices
  kind = devices[0].device_kind
  chip = chips.find(kind)
  if chip is None:
    raise errors.UserError(f'--topology {name}: {kind} is not in the table')
  whole = name if num_slices == 1 else f'{num_slices} x {name}'
  return Target(whole, devices, chip, num_slices)


def _part_of_host(name: str) -> tuple[int, ...]:
  """The bounds of fewer chips than a host has (2x2x1), which libtpu asks for.

  Args:
    name: as libtpu takes it.

  Returns:
    Three numbers; none where the chips are whole hosts, or it is no such name.
  """
  found = re.fullmatch(r'\w+:(\d+)x(\d+)(?:x(\d+))?', name)
  if not found:
    return ()
  bounds = tuple(int(size or 1) for size in found.groups())
  return bounds if 0 < math.prod(bounds) < 4 else ()


def compile_program(
  lowered: jax.stages.Lowered,
) -> tuple[jax.stages.Compiled | None, dict[str, Any]]:
  """A program and its figures; no program where it does not fit.

  Returns:
    The program, and JSON values: `fits`; if so `bytes` per device, the
    collectives by kind and size, the number of Pallas kernels and what the
    compiler counts; if not, the `problem` in the compiler's words.
  """
  began = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    message = str(e).splitlines()[0]
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    return None, {'fits': False, 'problem': message}
  memory: Any = compiled.memory_analysis()
  sizes = {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'program': memory.generated_code_size_in_bytes,
  }
  text = compiled.as_text() or ''
  costs = compiled.cost_analysis() or {}
  return compiled, {
    # The compiler refuses what does not.
    'fits': True,
    'bytes': {**sizes, 'peak': sum(sizes.values())},
    'collectives': _sum_collectives(hlo.collectives(text)),
    'pallas_kernels': text.count('custom_call_target="tpu_custom_call"'),
    # As the compiler counts: loops once, whatever their length.
    'compiler': {
      'flops': costs.get('flops'),
      'bytes_accessed': costs.get('bytes accessed'),
    },
    'compile_seconds': time.monotonic() - began,
  }


def _sum_collectives(found: Sequence[hlo.Collective]) -> list[dict[str, Any]]:
  """By kind, size and number of devices, most bytes first."""
  counts: collections.Counter[tuple[str, int, int]] = collections.Counter()
  for c in found:
    devices = len(c.groups[0]) if c.groups else 0
    counts[c.kind, c.nbytes, devices] += c.times
  rows = [
    {'kind': kind, 'bytes': size, 'devices': devices, 'times': times}
    for (kind, size, devices), times in counts.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'] * row['times'])
