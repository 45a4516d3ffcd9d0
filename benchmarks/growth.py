"""Measures how a step's cost grows with P, S, B and the number of devices.

    python benchmarks/growth.py --json benchmarks/growth_cpu.json

It times SmolLM2-135M-Instruct in float32 and varies one of
P (tokens of passages), S (tokens after the passages) and B (examples) at a
time. Each time stands next to the estimate of `vtokens/planning/flops.py`. The
bytes that devices exchange come from the step compiled for simulated devices: a
model of 8 layers, 512 wide, 16 rows of 256 + 64 tokens.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

BASE = (600, 110, 4)
GRID = [
  BASE,
  *((p, BASE[1], BASE[2]) for p in (150, 300, 1200)),
  *((BASE[0], s, BASE[2]) for s in (55, 220, 440)),
  *((BASE[0], BASE[1], b) for b in (1, 2, 8)),
]
DEVICES = (2, 4, 8)
K, TARGETS = 50, 16
# In a separate process, because the number of devices is fixed when JAX starts.
_DEVICES = """
import json, sys
import jax, jax.numpy as jnp
from vtokens.planning import abstract_step as abstract, hlo
from vtokens import config
from vtokens.method import optim, steps
from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig

base = DecoderConfig(
  vocab_size=8192, embed_dim=512, num_layers=8, num_heads=8, num_kv_heads=8,
  head_dim=64, mlp_dim=1536,
)
optimizer = optim.make_optimizer(config.Optim(), 1000)
found = []
for count in json.loads(sys.argv[1]):
  for axis in range(3):
    shape = tuple(count if i == axis else 1 for i in range(3))
    mesh = partitioning.make_mesh(shape, jax.devices()[:count])
    graph, params = abstract.base(base, jnp.dtype('float32'), mesh)
    state = abstract.state(
    optimizer, jax.ShapeDtypeStruct((50, base.embed_dim), jnp.float32), mesh
  )
    batch = abstract.batch(16, (256, 64), 16, mesh, per_row=1)
    text = steps.jit_train_step(
      graph, optimizer, state, config.Train()
    ).lower(state, params, batch).compile().as_text()
    kinds = {}
    for c in hlo.collectives(text):
      kinds[c.kind] = kinds.get(c.kind, 0) + c.nbytes * c.times
    found.append({'mesh': shape, 'bytes': kinds})
print(json.dumps(found))
"""


def measure(repeats: int) -> list[dict]:
  """Times of the grid; all programs run in turn."""
  import flax.nnx as nnx
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vtokens import config
  from vtokens.data import batch as batch_lib
  from vtokens.devices import partitioning
  from vtokens.method import steps
  from vtokens.models import frozen_base
  from vtokens.planning import flops
  from vtokens.recipes import smollm2

  mesh = partitioning.make_mesh((-1, 1, 1))
  base = frozen_base.load_base(config.Base(smollm2.PATH, 'float32'), mesh)
  table = jnp.ones((K, base.config.embed_dim))
  rng = np.random.default_rng(0)

  def batch(prefix, suffix, rows):
    def ids(size):
      return rng.integers(100, 40_000, (rows, size), dtype=np.int32)

    def count(start, stop):
      return np.tile(np.arange(start, stop, dtype=np.int32), (rows, 1))

    virtual = count(base.config.vocab_size, base.config.vocab_size + K)
    suffix_ids: Any = np.concatenate([virtual, ids(suffix - K)], axis=1)
    return batch_lib.Batch(
      prefix=ids(prefix),
      prefix_positions=count(0, prefix),
      suffix=suffix_ids,
      suffix_positions=count(prefix, prefix + suffix),
      targets=ids(TARGETS),
      target_index=count(suffix - TARGETS, suffix),
    )

  def loss(table, params, batch):
    decoder = nnx.merge(base.graph, jax.lax.stop_gradient(params))
    cache = steps.encode_prefix(decoder, batch.prefix, batch.prefix_positions)
    return steps.suffix_nll(table, decoder, cache, batch)[0]

  programs = []
  for shape in GRID:
    given = batch(*shape)
    program = jax.jit(jax.grad(loss)).lower(table, base.params, given).compile()
    programs.append((program, given))
  seconds: list[list[float]] = [[] for _ in GRID]
  for _ in range(repeats + 1):
    for (program, given), times in zip(programs, seconds, strict=True):
      began = time.perf_counter()
      jax.block_until_ready(program(table, base.params, given))
      times.append(time.perf_counter() - began)
  rows = []
  for (prefix, suffix, count), times in zip(GRID, seconds, strict=True):
    needed = count * flops.train_flops(
      base.config, [(prefix, prefix, suffix, TARGETS)]
    )
    rows.append(
      {
        'prefix': prefix,
        'suffix': suffix,
        'batch': count,
        'seconds': statistics.median(times[1:]),
        'needed_flops': needed,
      }
    )
  for row in rows:
    row['times_as_long'] = row['seconds'] / rows[0]['seconds']
    row['times_the_flops'] = row['needed_flops'] / rows[0]['needed_flops']
  return rows


def communication() -> list[dict]:
  """Bytes that a device receives in a step, by mesh and kind of collective."""
  done = subprocess.run(
    [sys.executable, '-c', _DEVICES, json.dumps(DEVICES)],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={max(DEVICES)}',
    },
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  rows = measure(args.repeats)
  print(
    f'{"P":>5} {"S":>5} {"B":>3} {"seconds":>8} {"x time":>7} {"x FLOPs":>8}'
  )
  for row in rows:
    print(
      f'{row["prefix"]:5} {row["suffix"]:5} {row["batch"]:3} '
      f'{row["seconds"]:8.2f} {row["times_as_long"]:7.2f} '
      f'{row["times_the_flops"]:8.2f}'
    )
  exchanged = communication()
  for row in exchanged:
    sizes = ', '.join(
      f'{kind} {size / 2**20:.2f} MiB' for kind, size in row['bytes'].items()
    )
    print(f'{row["mesh"]!s:12} {sizes or "nothing"}')
  if args.json:
    report = {'times': rows, 'communication': exchanged}
    args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
