"""Compiles programs for TPUs and GPUs that are not here."""

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

from vtokens.devices import chips
from vtokens.host import aside, errors, stopping
from vtokens.planning import gpus, hlo

# Names of Pallas kernels in programs for TPUs and for GPUs.
_KERNELS = ('tpu_custom_call', '__gpu$xla.gpu.triton')
# With a device, XLA measures which kernel is best for a product. Without one it
# guesses Triton kernels, some of which do not compile. cuBLAS kernels are not
# compiled.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}
_GIB = 2**30
# Usual shapes of slices, by their number of chips
# (https://cloud.google.com/tpu/docs/v5e, v5p, v6e, v4). v4 and v5p also have
# larger slices, and longer ones of the same number of chips.
_FLAT = {
  1: '1x1',
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_CUBES = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
  512: '8x8x8',
}
_SLICES = {'v4': _CUBES, 'v5p': _CUBES, 'v5e': _FLAT, 'v6e': _FLAT}
# Google's machine types -> libtpu's names. Numbers in those of v4 and v5p count
# TensorCores, of which a chip has two.
_MACHINE_TYPES = {'v5litepod': 'v5e', **{kind: kind for kind in _SLICES}}
_TWO_CORES = ('v4', 'v5p')


@dataclasses.dataclass(frozen=True)
class Target:
  """TPU slices, or a machine with GPUs, that only the compiler knows.

  Attributes:
    name: libtpu's name of the slice, e.g. v5e:4x4; for several slices, e.g.
      2 x v5e:4x4; for a machine with GPUs, e.g. h100:8.
    devices: all chips.
    chip: properties of a chip.
    memory: bytes of a chip that a program can use.
    num_slices: number of slices.
  """

  name: str
  devices: Sequence[Any]
  chip: chips.Chip
  memory: float
  num_slices: int = 1


def find_target(name: str, num_slices: int = 1) -> Target:
  """Finds the slice or machine of a name.

  Args:
    name: libtpu's name of a slice, e.g. v5e:4x4; or its number of chips, e.g.
      v5p:8; or Google's machine type, e.g. v5p-16; or a GPU and their number in
      the machine, e.g. h100:8.
    num_slices: number of slices, joined by the data center's network.

  Raises:
    errors.UserError: libtpu or JAX's plugin for GPUs is missing or does not
      know the name.
  """
  if name.split(':')[0] in gpus.CARDS:
    return _find_gpus(name, num_slices)
  name = _with_shape(name)
  # Otherwise libtpu would query a metadata server, or warn.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  # libtpu locks the machine's TPUs, which are not used here.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # JAX sees a v4 chip as one device. libtpu needs an option for that.
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
      f'--topology {name}: {str(e).splitlines()[0]}; expected e.g. v5e:4x4 or '
      "v5p:2x2x4, and libtpu (pip install 'vtokens[plan]')"
    ) from None
  devices: Sequence[Any] = found.devices
  kind = devices[0].device_kind
  chip = chips.find(kind)
  if chip is None:
    raise errors.UserError(f'--topology {name}: {kind} is not in the table')
  whole = name if num_slices == 1 else f'{num_slices} x {name}'
  return Target(whole, devices, chip, chip.memory, num_slices)


def _find_gpus(name: str, num_slices: int) -> Target:
  """Finds a machine, e.g. h100:8; raises like `find_target`."""
  kind, _, number = name.partition(':')
  count = int(number) if number.isdecimal() else 0
  if not 1 <= count <= gpus.MOST_CARDS:
    raise errors.UserError(
      f'--topology {name}: expected {kind}:N for a machine with N of them, 1 '
      f'to {gpus.MOST_CARDS}'
    )
  if num_slices > 1:
    raise errors.UserError(
      f'--num_slices={num_slices}: {name} is a machine, and what several '
      'exchange through their network is not known here'
    )
  card = gpus.CARDS[kind]
  try:
    found = topologies.get_topology_desc(
      platform='cuda',
      topology_name=name,
      # Partitions, machines per partition, devices per machine.
      topology=f'1x1x{count}',
      target_config=card.target_config,
    )
  except RuntimeError as e:
    raise errors.UserError(
      f'--topology {name}: {str(e).splitlines()[0]}; it needs JAX with its '
      "plugin for CUDA (pip install 'vtokens[plan-gpu]')"
    ) from None
  chip = chips.find(card.kind)
  assert chip is not None, card.kind
  devices: Sequence[Any] = found.devices
  return Target(name, devices, chip, gpus.usable_memory(card))


def _with_shape(name: str) -> str:
  """The name of a slice with its shape, as libtpu wants it.

  Args:
    name: such a name; or with the number of chips in the place of the shape; or
      Google's name of the machine type.

  Raises:
    errors.UserError: the name has another form, or the shape of a slice with so
      many chips is not known here.
  """
  if re.fullmatch(r'\w+:\d+(x\d+)+', name):
    return name
  kind, _, number = name.partition(':')
  if found := re.fullmatch(r'(\w+)-(\d+)', name):
    kind = _MACHINE_TYPES.get(found[1], '')
    cores = 2 if kind in _TWO_CORES else 1
    number = f'{int(found[2]) / cores:g}'
  if kind not in _SLICES or not number:
    raise errors.UserError(
      f'--topology {name}: expected a slice by its shape (v5e:4x4, v5p:2x2x4), '
      'its number of chips (v5e:16, v5p:16) or its machine type (v5litepod-16, '
      f'v5p-32), of {", ".join(_SLICES)}; or {" or ".join(gpus.CARDS)} with '
      'their number (h100:8)'
    )
  shapes = _SLICES[kind]
  if number not in map(str, shapes):
    raise errors.UserError(
      f'--topology {name}: expected a number of chips of '
      f'{", ".join(map(str, shapes))}, not {number}; name another slice by its '
      f'shape, e.g. {kind}:{shapes[4]}'
    )
  return f'{kind}:{shapes[int(number)]}'


def _part_of_host(name: str) -> tuple[int, ...]:
  """Bounds of a slice smaller than a host (2x2x1); libtpu requires them.

  Args:
    name: libtpu's name of the slice.

  Returns:
    Three numbers; an empty tuple if the slice has whole hosts or the name has
    another form.
  """
  found = re.fullmatch(r'\w+:(\d+)x(\d+)(?:x(\d+))?', name)
  if not found:
    return ()
  bounds = tuple(int(size or 1) for size in found.groups())
  return bounds if 0 < math.prod(bounds) < 4 else ()


def compile_program(
  lowered: jax.stages.Lowered, target: Target
) -> tuple[jax.stages.Compiled | None, dict[str, Any]]:
  """Compiles a program and reads its figures.

  Args:
    lowered: the program.
    target: the target that it is lowered for.

  Returns:
    The program, and JSON values: `fits`; `bytes` per device, the collectives
    by kind and size, the number of Pallas kernels, and the compiler's counts
    (none for GPUs); and the `problem` if it does not fit. If the compiler
    refuses the program, it is None, with only `fits` and `problem`.
  """
  began = time.monotonic()
  tpu = target.devices[0].platform == 'tpu'
  try:
    compiled = aside.call(
      lambda: lowered.compile(
        compiler_options=None if tpu else dict(_GPU_OPTIONS)
      ),
      stopping.check,
    )
  except jax.errors.JaxRuntimeError as e:
    message = str(e).splitlines()[0]
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    return None, {'fits': False, 'problem': message}
  used: Any = compiled.memory_analysis()
  sizes = {
    'arguments': used.argument_size_in_bytes,
    'temporaries': used.temp_size_in_bytes,
    'results': used.output_size_in_bytes - used.alias_size_in_bytes,
    'program': used.generated_code_size_in_bytes,
  }
  text = compiled.as_text() or ''
  costs = compiled.cost_analysis() or {}
  peak = sum(sizes.values())
  # The TPU compiler refuses programs that do not fit; the GPU compiler does
  # not.
  fits = tpu or peak <= target.memory
  needed = f'{peak / _GIB:.2f} of {target.memory / _GIB:.2f} GiB are needed'
  return compiled, {
    'fits': fits,
    **({} if fits else {'problem': needed}),
    'bytes': {**sizes, 'peak': peak},
    'collectives': _sum_collectives(hlo.collectives(text)),
    'pallas_kernels': sum(
      text.count(f'custom_call_target="{name}"') for name in _KERNELS
    ),
    # The compiler counts a loop once, for any number of iterations.
    'compiler': {
      'flops': costs.get('flops'),
      'bytes_accessed': costs.get('bytes accessed'),
    },
    'compile_seconds': time.monotonic() - began,
  }


def _sum_collectives(found: Sequence[hlo.Collective]) -> list[dict[str, Any]]:
  """Counts collectives by kind, size and devices, most bytes first."""
  counts: collections.Counter[tuple[str, int, int]] = collections.Counter()
  for c in found:
    devices = len(c.groups[0]) if c.groups else 0
    counts[c.kind, c.nbytes, devices] += c.times
  rows = [
    {'kind': kind, 'bytes': size, 'devices': devices, 'times': times}
    for (kind, size, devices), times in counts.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'] * row['times'])
