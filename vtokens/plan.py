r"""Tells without TPUs or GPUs whether a run fits them; estimates its speed.

    python -m vtokens.plan --config configs/mistral_7b_instruct.py \
      --topology v5e:4x4

    python -m vtokens.plan --config configs/mistral_7b_instruct.py \
      --topology h100:8

Compiles the programs of training and generation for these devices from shapes
alone. It needs no weights and no devices, only the compiler: libtpu (`pip
install 'vtokens[plan]'`) or JAX's plugin for CUDA (`pip install
'vtokens[plan-gpu]'`). Flags override any field of the config, as in training.
docs/devices.md explains the figures.
"""

import sys
from typing import Any

import jax
from absl import flags as absl_flags

from vtokens import config
from vtokens.host import errors, writers
from vtokens.models import quantize
from vtokens.planning import aot, estimate, hlo
from vtokens.settings import flags

_MIB, _GIB = 2**20, 2**30


def format_plan(result: dict[str, Any]) -> str:
  """A plan of `estimate.plan_run` as a text."""
  chip = result['chip']
  mesh = ', '.join(f'{name} {size}' for name, size in result['mesh'].items())
  prefix, suffix = result['row_shape']
  method = result['quantize']
  quantised = '' if method == 'none' else f', {quantize.describe(method)},'
  lines = [
    f'{result["base"]}{quantised} on {result["topology"]}: '
    f'{result["devices"]} x '
    f'{chip["name"]} of {result["memory_bytes"] / _GIB:.2f} GiB; {mesh}',
    f'batch of {result["batch_size"]}, rows of {prefix} + {suffix} tokens',
    *([f'attention: {result["attention"]}'] if result['attention'] else []),
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
  """MiB of all collectives."""
  total: float = sum(row['bytes'] * row['times'] for row in collectives)
  return total / _MIB


def main(cfg: config.Config) -> None:
  """Plans a run and prints the figures; exits with 1 if it does not fit."""
  # Nothing runs here, so TPUs or GPUs of this machine are left alone.
  jax.config.update('jax_platforms', 'cpu')
  topology = absl_flags.FLAGS.topology
  if not topology:
    raise errors.UserError('--topology is needed, e.g. v5e:4x4 or h100:8')
  target = aot.find_target(topology, absl_flags.FLAGS.num_slices)
  result = estimate.plan_run(cfg, target)
  if not result['fits']:
    result['advice'] = estimate.advise(cfg, target)
  if absl_flags.FLAGS.json:
    writers.write_json(absl_flags.FLAGS.json, result)
  writers.say(format_plan(result))
  if not result['fits']:
    sys.exit(1)


if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'topology',
    None,
    'The slice, e.g. v5e:4x4; its number of chips, e.g. v5p:8, or machine '
    'type, e.g. v5p-16; or a machine with GPUs, e.g. h100:8.',
  )
  absl_flags.DEFINE_integer(
    'num_slices', 1, 'How many slices, joined by the network.', lower_bound=1
  )
  flags.define_path('json', None, 'File to write the figures to, as JSON.')
  flags.run_config(
    main, config.Config, config.validate, 'configs/mistral_7b_instruct.py'
  )
