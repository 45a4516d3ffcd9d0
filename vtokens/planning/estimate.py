"""Estimates whether a run fits devices, and its step time; advises changes."""

import dataclasses
import shlex
from typing import Any

import jax
import jax.numpy as jnp

from vtokens import config
from vtokens.devices import chips, partitioning
from vtokens.host import writers
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kernels import chosen
from vtokens.planning import (
  abstract_step,
  aot,
  flops,
  hlo,
  known_models,
  programs,
)

# Share of the peak that a training step reaches, by platform. MaxText's
# published runs of 16B to 128B models on v5e-256 have 0.56 to 0.67
# (https://github.com/AI-Hypercomputer/maxtext, configs/v5e/README.md); Llama 3
# 405B had 0.38 to 0.43 on H100s (arXiv 2407.21783, section 3.3.2).
EFFICIENCY = {'tpu': 0.55, 'gpu': 0.4}
# Share of the interconnect's data sheet bandwidth that collectives reach. Most
# TPU collectives use only the links of one direction of the torus. NVLink
# reaches 370 of 450 GB/s
# (https://jax-ml.github.io/scaling-book/gpus).
INTERCONNECT = {'tpu': 0.5, 'gpu': 0.8}


def plan_run(
  cfg: config.Config, target: aot.Target, *, decoding: bool = True
) -> dict[str, Any]:
  """Compiles a run's programs and estimates the time of a step.

  Args:
    cfg: a validated config.
    target: the slice or machine.
    decoding: whether to compile the programs of evaluation.

  Returns:
    JSON values: the figures of each program, `fits`, and the estimates.

  Raises:
    errors.UserError: base, batch and mesh do not match.
  """
  base = dataclasses.replace(
    known_models.read_architecture(cfg.base.path),
    context_length=cfg.context_length,
    kernels=cfg.base.attention == 'auto',
    scan_layers=cfg.base.scan_layers,
  )
  mesh = partitioning.make_mesh(cfg.mesh.shape, target.devices)
  found = programs.compile_programs(cfg, base, mesh, target, decoding=decoding)
  train = found['training step']
  result = {
    'base': cfg.base.path,
    'dtype': cfg.base.dtype,
    'quantize': cfg.base.quantize,
    'topology': target.name,
    'chip': dataclasses.asdict(target.chip),
    'devices': len(target.devices),
    'mesh': dict(mesh.shape),
    'batch_size': cfg.data.batch_size,
    'row_shape': list(programs.row_shape(cfg)),
    'remat': cfg.train.remat,
    'attention': chosen.describe(base, jnp.dtype(cfg.base.dtype), mesh),
    'accumulation_steps': cfg.train.accumulation_steps,
    'programs': found,
    'fits': all(program['fits'] for program in found.values()),
    'memory_bytes': target.memory,
    'jax': jax.__version__,
  }
  if train['fits']:
    result['estimate'] = step_time(cfg, base, mesh, target.chip, train)
  return result


def step_time(
  cfg: config.Config,
  base: DecoderConfig,
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
  train: dict[str, Any],
) -> dict[str, float]:
  """Estimates the time of a training step of full rows.

  The step takes as long as the slowest of three resources, which overlap.
  Arithmetic, with padding and recomputation, runs at `EFFICIENCY` of the peak.
  HBM reads the weights once in each of three passes. The interconnect moves the
  collectives, without traffic between slices, at `INTERCONNECT` of the data
  sheet's bandwidth.

  Args:
    cfg: a validated config.
    base: the architecture of its base.
    mesh: the devices.
    chip: properties of a device.
    train: figures of the training step; see `aot.compile_program`.

  Returns:
    Seconds of each resource, `step_seconds`, `examples_per_second`,
    `needed_flops`, the assumed `efficiency`, and `mfu`, which counts only the
    arithmetic that the method needs for rows without padding.
  """
  per_row = cfg.data.examples_per_row
  draws = cfg.virtual_tokens.draws_per_example
  prefix, suffix = programs.row_shape(cfg)
  prefix, suffix = prefix // per_row, suffix // per_row
  answer = cfg.data.max_answer_tokens
  suffixes = [
    (0 if number else prefix, prefix, suffix // draws, answer)
    for number in range(draws)
  ]
  taught = programs.teacher_shape(cfg)
  teacher = []
  if taught:
    encoded, own = (length // per_row for length in taught)
    teacher = [(encoded, prefix, own, answer)]
  needed = cfg.data.batch_size * flops.train_flops(base, suffixes, teacher)
  done = needed
  if cfg.train.remat:
    done += 2.0 * flops.matrix_weights(base) * cfg.data.batch_size * suffix
  passes = 3 * cfg.train.accumulation_steps
  moved = sum(
    row['times'] * traffic(row)
    for row in train['collectives']
    if row['kind'] != hlo.BETWEEN_SLICES
  )
  platform = partitioning.platform(mesh)
  efficiency = EFFICIENCY[platform]
  seconds = {
    'arithmetic_seconds': done / mesh.size / (efficiency * chip.flops),
    'hbm_seconds': passes
    * abstract_step.matrix_bytes(
      base, jnp.dtype(cfg.base.dtype), cfg.base.quantize
    )
    / mesh.shape['tensor']
    / chip.bandwidth,
    'interconnect_seconds': moved
    / (INTERCONNECT[platform] * chip.interconnect),
  }
  step = max(seconds.values())
  return {
    **seconds,
    'step_seconds': step,
    'examples_per_second': cfg.data.batch_size / step,
    'needed_flops': needed,
    'efficiency': efficiency,
    'mfu': needed / mesh.size / chip.flops / step,
  }


def traffic(row: dict[str, Any]) -> float:
  """Bytes that a device sends in one run of a collective.

  Args:
    row: an entry of a program's `collectives`.
  """
  factor = 1.0
  if row['kind'] == 'all-reduce':
    factor = 2.0  # Data go around the ring twice.
  elif row['kind'] == 'reduce-scatter':
    # A device keeps one part and sends all other parts.
    factor = max(row['devices'] - 1, 1)
  return factor * float(row['bytes'])


def advise(cfg: config.Config, target: aot.Target) -> str | None:
  """Finds the cheapest change of a config that makes the run fit.

  Args:
    cfg: a config that does not fit.
    target: the slice or machine.

  Returns:
    Flags for the change; None if no change helps.
  """
  for change in possible_changes(cfg, target):
    overrides = ' '.join(
      shlex.quote(f'--config.{name}={value}'.replace(' ', ''))
      for name, value in change.items()
    )
    writers.say(f'trying {overrides}')
    if plan_run(_with(cfg, change), target)['fits']:
      return overrides
  return None


def possible_changes(
  cfg: config.Config, target: aot.Target
) -> list[dict[str, Any]]:
  """Changes that save memory, cheapest first: field of the config -> value."""
  devices = len(target.devices)
  rows = cfg.data.batch_size // cfg.data.examples_per_row
  changes: list[dict[str, Any]] = []
  mesh: dict[str, Any] = {}
  over_all = (target.num_slices, devices // target.num_slices, 1)
  shape = partitioning.mesh_sizes(cfg.mesh.shape, devices)
  if shape != over_all and rows % devices == 0:
    mesh = {'mesh.shape': over_all}
    changes.append(mesh)
  # What is on already is neither tried again nor told.
  remat: dict[str, Any] = {}
  if not cfg.train.remat:
    remat = {'train.remat': True}
    changes.append({**mesh, **remat})
  # Rows are dealt to the devices along `data` and `fsdp`.
  data, fsdp, _ = over_all if mesh else shape
  accumulation = cfg.train.accumulation_steps
  while rows % (2 * accumulation * data * fsdp) == 0:
    accumulation *= 2
    changes.append({**mesh, **remat, 'train.accumulation_steps': accumulation})
  if cfg.eval.batch_size > devices:
    changes.append(
      {**(changes[-1] if changes else {}), 'eval.batch_size': devices}
    )
  # Last, because int8 and int4 change what the base computes.
  if cfg.base.quantize == 'none':
    most = changes[-1] if changes else {}
    methods = ['int8', 'int4']
    if known_models.read_architecture(cfg.base.path).model_type == 'gpt_oss':
      methods.insert(0, 'mxfp4')  # As its files have the experts.
    changes += [{**most, 'base.quantize': method} for method in methods]
  return changes


def _with(cfg: config.Config, changes: dict[str, Any]) -> config.Config:
  """A config with some fields changed."""
  for name, value in changes.items():
    section, field = name.split('.')
    part = dataclasses.replace(getattr(cfg, section), **{field: value})
    cfg = dataclasses.replace(cfg, **{section: part})
  return cfg
