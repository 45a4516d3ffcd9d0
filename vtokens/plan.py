r"""Whether a run fits TPUs or GPUs, and how fast it would be, without these.

    python -m vtokens.plan --config configs/mistral_7b_instruct.py \
      --topology v5e:4x4

    python -m vtokens.plan --config configs/mistral_7b_instruct.py \
      --topology h100:8

Compiles the programs of training and generation for the devices named, from
shapes alone: neither weights nor devices are needed, but the compiler, which is
libtpu (`pip install 'vtokens[plan]'`) or JAX's plugin for CUDA (`pip install
'vtokens[plan-gpu]'`). Any field of the config can be overridden as in training;
see docs/devices.md for what the figures mean.
"""

import dataclasses
import sys
from typing import Any

import flax.nnx as nnx
import huggingface_hub
import jax
import jax.numpy as jnp
from absl import flags as absl_flags
from etils import epath

from vtokens import config
from vtokens.devices import chips, partitioning
from vtokens.evaluation.asking import answering
from vtokens.host import errors, paths, writers
from vtokens.method import generate, optim, steps
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families.registry import from_hf
from vtokens.models.files import gguf_weights, hf_directory
from vtokens.planning import abstract_step, aot, flops, hlo, known_models
from vtokens.settings import flags

# Share of the peak that large matrix products and what is between them reach
# together, by platform. MaxText's published runs of 16B to 128B models on
# v5e-256 have 0.56 to 0.67 (https://github.com/AI-Hypercomputer/maxtext,
# configs/v5e/README.md); Llama 3 405B had 0.38 to 0.43 on H100s (arXiv
# 2407.21783, section 3.3.2).
EFFICIENCY = {'tpu': 0.55, 'gpu': 0.4}
# Share of the data sheet's bandwidth of the interconnect that collectives
# reach. Most of TPUs' use the links of one direction of the torus only; 370 of
# NVLink's 450 GB/s are in https://jax-ml.github.io/scaling-book/gpus.
INTERCONNECT = {'tpu': 0.5, 'gpu': 0.8}
_MIB, _GIB = 2**20, 2**30


def read_architecture(path: str) -> DecoderConfig:
  """Shape of a base by its `base.path`; its weights are not read.

  Raises:
    errors.UserError: it is not found.
  """
  path = paths.resolve(path)
  paths.check_on_disk(path)
  if path.endswith('.gguf'):
    return gguf_weights.GGUFSource(path).config
  if epath.Path(path).exists():
    return hf_directory.read_config(path)
  values = known_models.find(path)
  if values is not None:
    return from_hf(values, path)
  try:
    file = huggingface_hub.hf_hub_download(path, 'config.json')
  # The hub's errors, and those of its HTTP client.
  except Exception as e:
    raise errors.UserError(
      f'config.base.path: {path} is no local path, its config.json cannot be '
      f'had from the hub ({str(e).splitlines()[0]}), and it is not among the '
      f'models known here: {", ".join(known_models.CONFIGS)}'
    ) from e
  return hf_directory.read_config(epath.Path(file).parent)


def plan(
  cfg: config.Config, target: aot.Target, *, decoding: bool = True
) -> dict[str, Any]:
  """Compiles a run's programs for a slice or machine.

  Args:
    cfg: a validated config.
    target: the slice or machine.
    decoding: those that evaluation runs, too.

  Returns:
    JSON values: the figures of each program, `fits`, and the estimates.

  Raises:
    errors.UserError: base, batch and mesh do not fit one another.
  """
  base = dataclasses.replace(
    read_architecture(cfg.base.path),
    context_length=cfg.context_length,
    kernels=cfg.base.attention == 'auto',
  )
  mesh = partitioning.make_mesh(cfg.mesh.shape, target.devices)
  rows = cfg.data.batch_size // cfg.data.examples_per_row
  partitioning.check_batch(mesh, rows // cfg.train.accumulation_steps)
  graph, params = abstract_step.base(
    base, jnp.dtype(cfg.base.dtype), mesh, cfg.base.quantize
  )
  lowered = _lower_train(cfg, base, graph, params, mesh)
  programs = {'training step': _figures(lowered, target)}
  if decoding:
    programs |= _compile_decoding(cfg, base, graph, params, mesh, target)
  train = programs['training step']
  result = {
    'base': cfg.base.path,
    'dtype': cfg.base.dtype,
    'quantize': cfg.base.quantize,
    'topology': target.name,
    'chip': dataclasses.asdict(target.chip),
    'devices': len(target.devices),
    'mesh': dict(mesh.shape),
    'batch_size': cfg.data.batch_size,
    'row_shape': list(row_shape(cfg)),
    'remat': cfg.train.remat,
    'accumulation_steps': cfg.train.accumulation_steps,
    'programs': programs,
    'fits': all(program['fits'] for program in programs.values()),
    'memory_bytes': target.memory,
    'jax': jax.__version__,
  }
  if train['fits']:
    result['estimate'] = estimate(cfg, base, mesh, target.chip, train)
  return result


def row_shape(cfg: config.Config) -> tuple[int, int]:
  """The longest (prefix, suffix) of a row, which needs most memory."""
  if cfg.data.shapes:
    return cfg.data.shapes[-1]
  per_row = cfg.data.examples_per_row
  prefix = per_row * cfg.data.max_prefix_tokens
  draws = cfg.virtual_tokens.draws_per_example
  suffix = per_row * draws * cfg.data.max_suffix_tokens
  if cfg.virtual_tokens.position == 'first':
    return (per_row, prefix + suffix)
  return prefix, suffix


def _lower_train(
  cfg: config.Config,
  base: DecoderConfig,
  graph: nnx.GraphDef,
  params: nnx.State,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Lowered:
  optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
  per_row = cfg.data.examples_per_row
  draws = cfg.virtual_tokens.draws_per_example
  size = (cfg.virtual_tokens.num_virtual_tokens, base.embed_dim)
  state = abstract_step.state(optimizer, size, mesh)
  return steps.jit_train_step(graph, optimizer, state, cfg.train).lower(
    state,
    params,
    abstract_step.batch(
      cfg.data.batch_size // per_row,
      row_shape(cfg),
      per_row * draws * cfg.data.max_answer_tokens,
      mesh,
      packed=per_row > 1,
      draws=draws,
    ),
  )


def _compile_decoding(
  cfg: config.Config,
  base: DecoderConfig,
  graph: nnx.GraphDef,
  params: nnx.State,
  mesh: jax.sharding.Mesh,
  target: aot.Target,
) -> dict[str, dict[str, Any]]:
  """What evaluation runs: passages once, then answers to all numbers of k."""
  rows = partitioning.round_up_rows(mesh, cfg.eval.batch_size)
  branches = len(set(cfg.eval.num_active))
  prefix, suffix = answering.ROUND
  prefix = answering.round_up(cfg.data.max_prefix_tokens, prefix)
  longest = min(branches * cfg.data.max_suffix_tokens, answering.SUFFIX_BUDGET)
  batch = abstract_step.batch(
    rows,
    (prefix, answering.round_up(longest, suffix)),
    branches,
    mesh,
    packed=True,
  )
  lowered = generate.encode_prefix.lower(
    params, batch.prefix, batch.prefix_positions, graph=graph
  )
  compiled, encode = aot.compile_program(lowered, target)
  if compiled is None:
    return {'passages': encode}
  cache = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    lowered.out_info,
    compiled.output_shardings,
  )
  of_vocab: Any = jax.ShapeDtypeStruct((base.vocab_size,), bool)
  eos_id: Any = jax.ShapeDtypeStruct((), jnp.int32)
  table = jax.ShapeDtypeStruct(
    (cfg.virtual_tokens.num_virtual_tokens, base.embed_dim), jnp.float32
  )
  answer = generate.generate.lower(
    params,
    table,
    cache,
    generate.Suffixes(
      batch.suffix,
      batch.suffix_positions,
      batch.suffix_segments if branches > 1 else None,
      batch.targets,
    ),
    generate.Endings(eos_id, of_vocab, of_vocab, of_vocab),
    graph=graph,
    max_new_tokens=cfg.eval.max_new_tokens,
  )
  return {'passages': encode, 'answers': _figures(answer, target)}


def _figures(lowered: jax.stages.Lowered, target: aot.Target) -> dict[str, Any]:
  return aot.compile_program(lowered, target)[1]


def traffic(row: dict[str, Any]) -> float:
  """Bytes that a device sends in one run of a collective, over many devices.

  Args:
    row: of a program's `collectives`.
  """
  factor = 1.0
  if row['kind'] == 'all-reduce':
    factor = 2.0  # It goes round twice.
  elif row['kind'] == 'reduce-scatter':
    # The result is one of so many parts, and all others are sent on.
    factor = max(row['devices'] - 1, 1)
  return factor * row['bytes']


def estimate(
  cfg: config.Config,
  base: DecoderConfig,
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
  train: dict[str, Any],
) -> dict[str, float]:
  """Time of a training step of full rows, by the slowest of three resources.

  Arithmetic at `EFFICIENCY` of the peak, padding and recomputation included;
  HBM by the weights alone, which each of the three passes reads once; the
  interconnect by the collectives at `INTERCONNECT` of the data sheet's
  bandwidth; what goes between slices is left out. All overlap.

  Returns:
    Seconds of each, `step_seconds`, `examples_per_second`, the `efficiency`
    assumed and `mfu` (of the arithmetic that the method needs, had the rows no
    padding).
  """
  per_row = cfg.data.examples_per_row
  draws = cfg.virtual_tokens.draws_per_example
  prefix, suffix = row_shape(cfg)
  prefix, suffix = prefix // per_row, suffix // per_row
  answer = cfg.data.max_answer_tokens
  suffixes = [
    (0 if number else prefix, prefix, suffix // draws, answer)
    for number in range(draws)
  ]
  needed = cfg.data.batch_size * flops.train_flops(base, suffixes)
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


def advise(cfg: config.Config, target: aot.Target) -> str | None:
  """The first change, of those that cost least, that makes a run fit."""
  devices = len(target.devices)
  rows = cfg.data.batch_size // cfg.data.examples_per_row
  changes: list[dict[str, Any]] = []
  mesh = {}
  over_all = (target.num_slices, devices // target.num_slices, 1)
  if tuple(cfg.mesh.shape) != over_all and rows % devices == 0:
    mesh = {'mesh.shape': over_all}
    changes.append(mesh)
  if not cfg.train.remat:
    changes.append({**mesh, 'train.remat': True})
  accumulation = cfg.train.accumulation_steps
  while rows % (2 * accumulation * devices) == 0:
    accumulation *= 2
    changes.append(
      {**mesh, 'train.remat': True, 'train.accumulation_steps': accumulation}
    )
  if cfg.eval.batch_size > devices:
    changes.append(
      {**(changes[-1] if changes else {}), 'eval.batch_size': devices}
    )
  # Last: all of the above leaves the base what it is.
  if cfg.base.quantize == 'none':
    most = changes[-1] if changes else {}
    changes += [
      {**most, 'base.quantize': method} for method in ('int8', 'int4')
    ]
  for change in changes:
    overrides = ' '.join(
      f'--config.{name}={value}'.replace(' ', '')
      for name, value in change.items()
    )
    writers.say(f'trying {overrides}')
    if plan(_with(cfg, change), target)['fits']:
      return overrides
  return None


def _with(cfg: config.Config, changes: dict[str, Any]) -> config.Config:
  """A config with some fields changed."""
  for name, value in changes.items():
    section, field = name.split('.')
    part = dataclasses.replace(getattr(cfg, section), **{field: value})
    cfg = dataclasses.replace(cfg, **{section: part})
  return cfg


def format_plan(result: dict[str, Any]) -> str:
  """The figures as people read them."""
  chip = result['chip']
  mesh = ', '.join(f'{name} {size}' for name, size in result['mesh'].items())
  prefix, suffix = result['row_shape']
  method = result['quantize']
  quantised = '' if method == 'none' else f', quantised to {method},'
  lines = [
    f'{result["base"]}{quantised} on {result["topology"]}: '
    f'{result["devices"]} x '
    f'{chip["name"]} of {result["memory_bytes"] / _GIB:.2f} GiB; {mesh}',
    f'batch of {result["batch_size"]}, rows of {prefix} + {suffix} tokens',
    '',
    f'{"GiB per device":<16}{"arguments":>11}{"temporaries":>13}{"peak":>8}',
  ]
  for name, program in result['programs'].items():
    if not program['fits']:
      lines.append(f'{name:<16}does not fit: {program["problem"]}')
      continue
    sizes = {key: value / _GIB for key, value in program['bytes'].items()}
    lines.append(
      f'{name:<16}{sizes["arguments"]:11.2f}{sizes["temporaries"]:13.2f}'
      f'{sizes["peak"]:8.2f}'
    )
  train = result['programs']['training step']
  if train['fits'] and train['collectives']:
    lines += ['', 'a training step exchanges, on each device:']
    within: list[dict[str, Any]] = []
    between: list[dict[str, Any]] = []
    for row in train['collectives']:
      slices = row['kind'] == hlo.BETWEEN_SLICES
      (between if slices else within).append(row)
    for row in within[:8]:
      size = row['bytes'] / _MIB
      lines.append(
        f'  {row["times"]:5d} x {row["kind"]} of {size:.3g} MiB over '
        f'{row["devices"]} devices'
      )
    if within[8:]:
      lines.append(
        f'  and {len(within[8:])} smaller kinds, {_total(within[8:]):.3g} MiB '
        'in all'
      )
    if between:
      lines.append(f'  between slices {_total(between):.3g} MiB')
  if 'estimate' in result:
    e = result['estimate']
    lines += [
      '',
      f'estimated: {e["step_seconds"]:.3g} s a step, '
      f'{e["examples_per_second"]:.3g} examples/s, MFU {100 * e["mfu"]:.0f} %',
      f'  (arithmetic {e["arithmetic_seconds"]:.3g} s, weights from HBM '
      f'{e["hbm_seconds"]:.3g} s, interconnect '
      f'{e["interconnect_seconds"]:.3g} s;',
      f'  arithmetic at {e["efficiency"]:.0%} of the peak; nothing is '
      'measured)',
    ]
  lines += ['', 'fits' if result['fits'] else 'does not fit']
  if 'advice' in result:
    advice = result['advice']
    lines[-1] += (
      f'; it would with {advice}'
      if advice
      else ', whatever was tried; it needs more or larger chips'
    )
  return '\n'.join(lines)


def _total(collectives: list[dict[str, Any]]) -> float:
  """MiB of all."""
  return sum(row['bytes'] * row['times'] for row in collectives) / _MIB


def main(cfg: config.Config) -> None:
  """Entry point."""
  # Nothing runs here: TPUs or GPUs of this machine are left alone.
  jax.config.update('jax_platforms', 'cpu')
  topology = absl_flags.FLAGS.topology
  if not topology:
    raise errors.UserError('--topology is needed, e.g. v5e:4x4 or h100:8')
  target = aot.find_target(topology, absl_flags.FLAGS.num_slices)
  result = plan(cfg, target)
  if not result['fits']:
    result['advice'] = advise(cfg, target)
  if absl_flags.FLAGS.json:
    writers.write_json(absl_flags.FLAGS.json, result)
  writers.say(format_plan(result))
  if not result['fits']:
    sys.exit(1)


if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'topology', None, 'The slice, e.g. v5e:4x4, or the machine, e.g. h100:8.'
  )
  absl_flags.DEFINE_integer(
    'num_slices', 1, 'So many of them, joined by the network.', lower_bound=1
  )
  flags.define_path('json', None, 'File for the same figures as JSON.')
  flags.run_config(
    main, config.Config, config.validate, 'configs/mistral_7b_instruct.py'
  )
