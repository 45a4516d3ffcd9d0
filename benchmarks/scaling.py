r"""Estimates an epoch of the paper's data on TPU slices and H100s.

    python benchmarks/scaling.py --json benchmarks/scaling.json

It compiles the training step for each combination in `COMPILED` with
`vtokens.plan`, some minutes each, and prints the tables of docs/scaling.md.
Combinations in the file are not compiled again, so the same command continues
after an interruption. `--print` compiles nothing. Figures of different versions
of JAX or libtpu are not mixed. After a change of the training step, start
without the file. Nothing runs on an accelerator. Needs the extra `plan`.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import pathlib
import sys
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from vtokens import recipes
from vtokens.devices import chips
from vtokens.host import errors, writers
from vtokens.models import quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.planning import (
  aot,
  estimate,
  flops,
  hlo,
  known_models,
  matrices,
  programs,
)

MODELS = {
  'Mistral 7B': 'mistralai/Mistral-7B-Instruct-v0.1',
  'Llama 2 13B': 'meta-llama/Llama-2-13b-hf',
  'Llama 3 70B': 'meta-llama/Meta-Llama-3-70B-Instruct',
  'Qwen3 30B-A3B': 'Qwen/Qwen3-30B-A3B-Instruct-2507',
  'gpt-oss 20B': 'openai/gpt-oss-20b',
}
M7, M13, M70, QWEN3, GPT_OSS = MODELS
DENSE = (M7, M13, M70)
# Google's names; the number of a v5p counts TensorCores, two per chip.
SLICES = {
  'v5e-8': 'v5e:2x4',
  'v5e-16': 'v5e:4x4',
  'v5e-64': 'v5e:8x8',
  'v5e-256': 'v5e:16x16',
  'v5p-32': 'v5p:2x2x4',
  'v5p-128': 'v5p:4x4x4',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A model on some devices.

  Attributes:
    model: key of `MODELS`.
    slice: key of `SLICES`, or 'N x H100'.
    mesh: (data, fsdp, tensor).
    batch: examples of an update, over all devices.
    accumulation: microbatches of an update.
    slices: number of slices.
  """

  model: str
  slice: str
  mesh: tuple[int, int, int]
  batch: int = 256
  accumulation: int = 1
  slices: int = 1

  @property
  def name(self) -> str:
    slices = f'{self.slices} x ' if self.slices > 1 else ''
    return (
      f'{self.model} | {slices}{self.slice} | {self.mesh} | '
      f'{self.batch} / {self.accumulation}'
    )

  @property
  def devices(self) -> int:
    return math.prod(self.mesh)


COMPILED = (
  Run(M7, 'v5e-8', (1, 8, 1), accumulation=2),
  Run(M7, 'v5e-16', (1, 16, 1)),
  Run(M7, 'v5e-64', (1, 64, 1)),
  Run(M7, 'v5e-256', (1, 256, 1)),
  Run(M7, 'v5e-256', (1, 64, 4)),
  Run(M7, 'v5e-256', (1, 256, 1), batch=1024),
  Run(M7, 'v5p-32', (16, 1, 1)),
  Run(M7, 'v5p-128', (1, 64, 1)),
  Run(M7, 'v5p-128', (64, 1, 1)),
  Run(M13, 'v5e-16', (1, 16, 1)),
  Run(M13, 'v5e-16', (1, 16, 1), accumulation=2),
  Run(M13, 'v5e-64', (1, 64, 1)),
  Run(M13, 'v5e-256', (1, 256, 1)),
  Run(M13, 'v5e-256', (1, 64, 4)),
  Run(M13, 'v5e-256', (1, 256, 1), batch=1024),
  Run(M13, 'v5p-32', (16, 1, 1)),
  Run(M13, 'v5p-128', (64, 1, 1)),
  Run(M70, 'v5e-16', (1, 16, 1)),
  Run(M70, 'v5e-16', (1, 4, 4), accumulation=16),
  Run(M70, 'v5e-64', (1, 64, 1)),
  Run(M70, 'v5e-256', (1, 256, 1)),
  Run(M70, 'v5e-256', (1, 64, 4)),
  Run(M70, 'v5e-256', (1, 256, 1), batch=1024),
  Run(M70, 'v5p-32', (1, 16, 1)),
  Run(M70, 'v5p-128', (1, 64, 1)),
  Run(M7, 'v5e-16', (2, 16, 1), slices=2),
)
# These are not compiled; their figures are arithmetic only.
COMPUTED = (
  Run(M7, '1 x H100', (1, 1, 1), accumulation=8),
  Run(M7, '8 x H100', (8, 1, 1)),
  Run(M7, '64 x H100', (64, 1, 1)),
  Run(M13, '1 x H100', (1, 1, 1), accumulation=16),
  Run(M13, '8 x H100', (8, 1, 1)),
  Run(M13, '8 x H100', (8, 1, 1), accumulation=2),
  Run(M13, '64 x H100', (64, 1, 1)),
  Run(M70, '8 x H100', (1, 8, 1)),
  Run(M70, '64 x H100', (8, 8, 1)),
  Run(QWEN3, 'v5e-16', (1, 16, 1)),
  Run(QWEN3, 'v5e-16', (1, 16, 1), accumulation=2),
  Run(QWEN3, 'v5p-16', (1, 8, 1)),
  Run(QWEN3, '8 x H100', (1, 8, 1)),
  Run(GPT_OSS, 'v5e-16', (1, 16, 1)),
  Run(GPT_OSS, 'v5e-16', (1, 16, 1), accumulation=2),
  Run(GPT_OSS, 'v5p-16', (1, 8, 1)),
  Run(GPT_OSS, '8 x H100', (1, 8, 1)),
)

# Average tokens of an example, and a padded row of four examples; see
# docs/scaling.md.
PREFIX, SUFFIX = 540, 57
ROW = (2304, 256)
# Shares that steps reach: of the peak in arithmetic, and of the interconnect's
# data sheet bandwidth (`BANDWIDTH`); see `estimate.step_time`.
EFFICIENCY = {
  'v5e': estimate.EFFICIENCY['tpu'],
  'v5p': estimate.EFFICIENCY['tpu'],
  'H100 SXM': estimate.EFFICIENCY['gpu'],
}
BANDWIDTH = {'v5e': 0.5, 'v5p': 0.5, 'H100 SXM': 0.8}
# Dollars per chip and hour.
PRICES = {'v5e': 1.2, 'v5p': 4.2, 'H100 SXM': 3.0}
# Factor on `memory` that a program may need; see `memory_check`.
MARGIN = 1.25
_GIB = 2**30


def _config(run: Run):
  cfg = recipes.spring(MODELS[run.model], 'paper')
  cfg.mesh.shape = run.mesh
  cfg.data.batch_size = run.batch
  cfg.train.accumulation_steps = run.accumulation
  return cfg


def _chip(run: Run) -> chips.Chip:
  if 'H100' in run.slice:
    return chips.CHIPS['NVIDIA H100 80GB HBM3']
  return chips.CHIPS[{'v5e': 'TPU v5 lite', 'v5p': 'TPU v5'}[run.slice[:3]]]


def compile_run(run: Run) -> dict[str, Any]:
  """The figures of `vtokens.plan` that the tables need."""
  target = aot.find_target(SLICES[run.slice], run.slices)
  try:
    found = estimate.plan_run(_config(run), target, decoding=False)
  except errors.UserError as e:
    return {'fits': False, 'refused': True, 'problem': str(e)}
  return {**found['programs']['training step'], 'refused': False}


def installed() -> dict[str, str]:
  """Versions of the compiling packages."""
  versions = {}
  for package in ('jax', 'libtpu'):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'none'
  return versions


def memory(run: Run) -> float:
  """Estimates the bytes of a device for rows of the longest shape.

  The sum has the weights, the passages' keys and values, the layer inputs that
  the suffix is recomputed from, two gathered layers and the head; and the
  larger of two terms: a layer's activations over the passages; or the suffix's
  scores, with their gradient, and logits, three of each, in float32.
  """
  cfg, base, rows, (prefix, suffix) = _shapes(run)
  _, fsdp, tensor = run.mesh
  width = base.embed_dim
  embeddings = 2 * base.vocab_size * width
  weights = flops.matrix_weights(base, active=False)
  layers = matrices.of_layers(base)
  cache = matrices.cache_bytes(base, prefix) / 2
  values = rows * cache / tensor + rows * suffix * width * base.num_layers
  if fsdp > 1:
    largest = max(sum(m.weights for m in layer.matrices) for layer in layers)
    values += (2 * largest + embeddings / 2) / tensor
  # Each device computes its own experts' outputs for all tokens.
  over_prefix = max(
    rows
    * prefix
    * (
      max(layer.inner('mlp'), layer.inner('attention')) / tensor
      + (4 + 2 * layer.copies) * width
    )
    for layer in layers
  )
  scores = rows * base.num_heads * suffix * (prefix + suffix) / tensor
  targets = rows * cfg.data.examples_per_row * cfg.data.max_answer_tokens
  logits = targets * base.vocab_size / tensor
  return (
    2 * (weights + embeddings) / fsdp / tensor
    + 2 * values
    + max(2 * over_prefix, 4 * 2 * scores + 4 * 3 * logits)
  )


def _shapes(run: Run):
  """Config, base, rows per device in a microbatch, and longest row."""
  cfg = _config(run)
  base = known_models.read_architecture(MODELS[run.model])
  rows = run.batch / cfg.data.examples_per_row / run.accumulation
  return cfg, base, rows / run.mesh[0] / run.mesh[1], programs.row_shape(cfg)


def predict(run: Run, found: dict[str, Any] | None) -> dict[str, float]:
  """Times of a step with rows of `ROW`, by resource, and derived figures.

  Args:
    run: the combination.
    found: figures of `compile_run`; None if it was not compiled.
  """
  cfg, base, _, longest = _shapes(run)
  chip = _chip(run)
  per_row = cfg.data.examples_per_row
  prefix, suffix = (size // per_row for size in ROW)
  example = (prefix, prefix, suffix, cfg.data.max_answer_tokens)
  done = flops.train_flops(base, [example])
  done += 2.0 * flops.matrix_weights(base) * suffix
  arithmetic = run.batch * done / run.devices
  arithmetic /= EFFICIENCY[chip.name] * chip.flops
  passes = 3 * run.accumulation
  weights = 2 * flops.matrix_weights(base, active=False) / run.mesh[2]
  if found is None:
    moved = passes * weights if run.mesh[1] > 1 else 0.0
  else:
    moved = _moved(run, base, found, sum(ROW) / sum(longest))
  interconnect = moved / (BANDWIDTH[chip.name] * chip.interconnect)
  hbm = passes * weights / chip.bandwidth
  best = max(arithmetic, hbm, interconnect)
  worst = max(arithmetic, hbm) + interconnect
  return {
    'arithmetic': arithmetic,
    'hbm': hbm,
    'interconnect': interconnect,
    'best': best,
    'worst': worst,
  }


def _moved(run: Run, base: Any, found: dict[str, Any], share: float) -> float:
  """Bytes that a device sends in a step with rows of `ROW`.

  The bytes of weights are the same as in the compiled step, which has longer
  rows. All other bytes are activations, which shrink with the rows.

  Raises:
    ValueError: the collectives found do not move the weights of all passes.
  """
  sizes = _weight_sizes(base, run.mesh[2])
  total, weights = 0.0, 0
  for row in found['collectives']:
    if row['kind'] == hlo.BETWEEN_SLICES:
      continue
    sent = row['times'] * estimate.traffic(row)
    # The TPU compiler turns some gathers into all-reduces; see docs/scaling.md.
    if (
      row['kind'] in ('all-gather', 'all-reduce')
      and row['devices'] == run.mesh[1]
      and row['bytes'] in sizes
    ):
      weights += row['times'] * row['bytes']
    else:
      sent *= share
    total += sent
  # Each layer moves in three passes, the head in one.
  once = 3 * flops.matrix_weights(base, active=False)
  once += base.vocab_size * base.embed_dim
  expected = 2 * once * run.accumulation // run.mesh[2]
  if weights != (expected if run.mesh[1] > 1 else 0):
    raise ValueError(
      f'{run.name}: {weights} bytes of weights in the collectives, {expected} '
      'expected: they are combined in ways not known here'
    )
  return total


def _weight_sizes(base: Any, tensor: int) -> set[int]:
  """Bytes of the head, and of sets of a layer's matrices in one collective."""
  params = nnx.to_flat_state(
    nnx.state(abstract_decoder(base, jnp.dtype(jnp.float32)))
  )
  stacks: dict[str, list[int]] = {}
  for path, param in params:
    if path[0] == 'layers' and quantize.matrix_inputs(param):
      # The first axis is that of the layers.
      size = math.prod(param.shape[1:])
      number = str(path[1]) if isinstance(path[1], int) else ''
      stacks.setdefault(number, []).append(size)
  sizes = {base.vocab_size * base.embed_dim} | {
    sum(some)
    for sizes_of in stacks.values()
    for count in range(1, len(sizes_of) + 1)
    for some in itertools.combinations(sizes_of, count)
  }
  return {2 * size // tensor for size in sizes}


def _number(x: float) -> str:
  """A number with three digits."""
  if x >= 100:
    return f'{float(f"{x:.3g}"):,.0f}'
  return f'{x:.{2 if x < 10 else 1}f}'


def _both(low: float, high: float) -> str:
  """A range, or one number if both ends look the same."""
  return _range(_number(low), _number(high))


def _range(low: str, high: str) -> str:
  return low if low == high else f'{low} to {high}'


def memory_table(done: dict[str, Any]) -> list[str]:
  lines = [
    '| model | slice | mesh | batch / micro | arguments | temporaries | peak '
    '| of | by arithmetic |',
    '| --- | --- | --- | --- | --: | --: | --: | --: | --: |',
  ]
  for run in (*COMPILED, *COMPUTED):
    found = done.get(run.name)
    if run in COMPILED and found is None:
      continue
    sizes = [''] * 3
    if found and found['fits']:
      sizes = [
        f'{found["bytes"][name] / _GIB:.2f}'
        for name in ('arguments', 'temporaries', 'peak')
      ]
    elif found:
      sizes[2] = 'refused' if found['refused'] else 'does not fit'
    lines.append(
      f'| {_head(run)} | {" | ".join(sizes)} | '
      f'{_chip(run).memory / _GIB:.2f} | {memory(run) / _GIB:.1f} |'
    )
  return lines


def memory_check(done: dict[str, Any]) -> list[str]:
  """Compares the estimate of `memory` with the compiler's figure."""
  ratios = [
    memory(run) / done[run.name]['bytes']['peak']
    for run in COMPILED
    if run.name in done and done[run.name]['fits']
  ]
  return [
    f'by arithmetic / compiled: {min(ratios):.2f} to {max(ratios):.2f}, '
    f'{len(ratios)} programs'
  ]


def time_table(done: dict[str, Any], prices: dict[str, float]) -> list[str]:
  lines = [
    '| model | slice | mesh | batch / micro | arithmetic, s '
    '| interconnect, s | step, s | examples/s | tokens/s/chip | epoch, h '
    '| chip-hours | dollars |',
    '| --- | --- | --- | --- ' + '| --: ' * 8 + '|',
  ]
  for run in (*COMPILED, *COMPUTED):
    found = done.get(run.name)
    if run in COMPILED and not (found and found['fits']):
      continue
    chip = _chip(run)
    if run in COMPUTED and MARGIN * memory(run) > chip.memory:
      continue
    t = predict(run, found)
    steps = recipes.PAPER_QUESTIONS / run.batch
    best, worst = t['best'], t['worst']
    tokens = run.batch * (PREFIX + SUFFIX) / run.devices
    hours = [steps * x / 3600 for x in (best, worst)]
    spent = [run.devices * x for x in hours]
    lines.append(
      f'| {_head(run)} | {t["arithmetic"]:.2f} | {t["interconnect"]:.2f} | '
      f'{_both(best, worst)} | {_both(run.batch / worst, run.batch / best)} '
      f'| {_both(tokens / worst, tokens / best)} | {_both(*hours)} | '
      f'{_both(*spent)} | '
      f'{_both(*(prices[chip.name] * x for x in spent))} |'
    )
  return lines


def balance_table() -> list[str]:
  """Sizes at which exchanging the weights takes as long as the arithmetic."""
  columns = {
    'v5e': ('v5e-64', 1),
    'v5p': ('v5p-128', 1),
    'v5p, all-reduces': ('v5p-128', 2),
    'H100, NVLink': ('64 x H100', 1),
  }
  examples = []
  for name, factor in columns.values():
    per_chip = []
    for model in DENSE:
      run = Run(model, name, (1, 64, 1))
      t = predict(run, None)
      ratio = factor * t['interconnect'] / t['arithmetic']
      per_chip.append(ratio * run.batch / run.devices)
    examples.append((min(per_chip), max(per_chip)))
  lines = [
    f'| | {" | ".join(columns)} |',
    '| --- ' + '| --: ' * len(columns) + '|',
    '| examples per chip and step | '
    + ' | '.join(_range(f'{a:.1f}', f'{b:.1f}') for a, b in examples)
    + ' |',
  ]
  for batch in (256, 1024):
    cells = (
      _range(f'{batch / b:.0f}', f'{batch / a:.0f}') for a, b in examples
    )
    lines.append(f'| chips at a batch of {batch:,} | {" | ".join(cells)} |')
  return lines


def _head(run: Run) -> str:
  slices = f'{run.slices} x ' if run.slices > 1 else ''
  mesh = ', '.join(map(str, run.mesh))
  micro = f' / {run.accumulation}' if run.accumulation > 1 else ''
  return f'{run.model} | {slices}{run.slice} | {mesh} | {run.batch}{micro}'


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--json', type=pathlib.Path, required=True)
  parser.add_argument('--print', action='store_true', help='compile nothing')
  for name, price in PRICES.items():
    parser.add_argument(
      f'--{name.split()[0].lower()}',
      type=float,
      default=price,
      dest=name,
      help=f'dollars of a {name} for an hour',
    )
  args = parser.parse_args()
  # Nothing runs here, so TPUs or GPUs of this machine stay unused.
  jax.config.update('jax_platforms', 'cpu')
  versions = installed()
  saved: dict[str, Any] = {'versions': versions, 'runs': {}}
  if args.json.exists():
    saved = json.loads(args.json.read_text())
  done = saved['runs']
  missing = [run for run in COMPILED if run.name not in done and not args.print]
  if saved['versions'] != versions:
    differ = (
      f'{args.json} was compiled by {saved["versions"]}, installed are '
      f'{versions}'
    )
    if missing:
      sys.exit(
        f'error: {differ}: --print prints it, another --json compiles anew'
      )
    print(f'warning: {differ}', file=sys.stderr)
  for run in missing:
    writers.say(run.name)
    done[run.name] = compile_run(run)
    writers.write_json(args.json, saved)
  prices = {name: getattr(args, name) for name in PRICES}
  for table in (
    memory_table(done),
    memory_check(done),
    time_table(done, prices),
    balance_table(),
  ):
    writers.say('\n'.join(['', *table]))


if __name__ == '__main__':
  main()
