"""Programs compiled for GPUs, without any: needs the extra `plan-gpu`.

JAX's plugin for CUDA, which is the compiler, writes to standard error in every
program where it finds no GPU, so `test` does not bring it.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import pytest
import tiny_run

from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kernels import flash
from vtokens.models.kv_cache import KVCache
from vtokens.planning import abstract_step, aot, estimate, gpus, known_models

if importlib.util.find_spec('jax_cuda12_plugin') is None:
  message = "pip install -e '.[plan-gpu]'"
  if os.environ.get('VTOKENS_REQUIRE_GPU_COMPILER'):
    raise ImportError(message)
  pytest.skip(message, allow_module_level=True)


@pytest.mark.slow
def test_gpus(tmp_path):
  out = tmp_path / 'plan.json'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'vtokens.plan', '--topology', 'h100:8'),
      *('--config', 'configs/mistral_7b_instruct.py', '--json', str(out)),
    ],
    cwd=tiny_run.ROOT,
    env={**os.environ, 'PYTHONPATH': str(tiny_run.ROOT)},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads(out.read_text())
  assert found['fits']
  assert found['chip']['name'] == 'H100 SXM'
  assert tuple(found['mesh'].values()) == (1, 8, 1)
  train = found['programs']['training step']
  # Of passages; of what follows, and once more, as train.remat is on; and back,
  # to its queries and its keys.
  assert train['pallas_kernels'] == 5
  assert found['attention'] == "vtokens' kernels"
  assert found['programs']['passages']['pallas_kernels'] == 1
  # Of the question; not of single tokens.
  assert found['programs']['answers']['pallas_kernels'] == 1
  _, count = known_models.CONFIGS[found['base']]
  assert 1 <= train['bytes']['arguments'] / (2 * count / 8) < 1.05
  for program in found['programs'].values():
    assert program['bytes']['peak'] < found['memory_bytes']
  assert 0 < found['estimate']['mfu'] < estimate.EFFICIENCY['gpu']
  assert 'fits' in done.stdout.splitlines()[-1]
  gathered = [c for c in train['collectives'] if c['kind'] == 'all-gather']
  total = sum(c['bytes'] * c['times'] for c in gathered)
  assert total == pytest.approx(3 * 2 * count, rel=0.15)


@pytest.mark.parametrize('kind', gpus.CARDS)
def test_cards(kind):
  target = aot.find_target(f'{kind}:2')
  assert len(target.devices) == 2
  assert target.devices[0].platform == 'gpu'
  card = gpus.CARDS[kind]
  assert target.devices[0].device_kind == card.kind
  # The data sheets' memory, of which the driver keeps a part for itself or
  # counts in 2**30, and bandwidth.
  assert card.memory == pytest.approx(target.chip.memory, rel=0.08)
  assert card.bandwidth == pytest.approx(target.chip.bandwidth, rel=0.001)


def test_gpus_that_are_too_small():
  target = aot.find_target('h100:1')
  mesh = partitioning.make_mesh((1, 1, 1), target.devices)
  x = jax.ShapeDtypeStruct(
    (1024, 1024), jnp.float32, sharding=partitioning.replicated(mesh)
  )
  lowered = jax.jit(lambda x: x + 1).lower(x)
  _, found = aot.compile_program(lowered, target)
  assert found['fits'] and found['bytes']['peak'] >= 2**23
  small = dataclasses.replace(target, memory=2**22)
  compiled, found = aot.compile_program(lowered, small)
  assert compiled is not None and not found['fits']
  assert found['problem'] == '0.01 of 0.00 GiB are needed'


@pytest.mark.parametrize('kind', gpus.CARDS)
@pytest.mark.parametrize(
  'heads, kv_heads, head_dim, settings',
  [
    (9, 3, 64, {}),
    (32, 32, 80, {}),
    (32, 8, 128, {}),
    (8, 4, 256, {'softcap': 50.0, 'window': 4096}),
    (64, 8, 64, {'sinks': True, 'window': 128}),
  ],
)
def test_compiled_for_cards(kind, heads, kv_heads, head_dim, settings):
  settings = dict(settings)
  target = aot.find_target(f'{kind}:1')
  mesh = partitioning.make_mesh((1, 1, 1), target.devices)

  def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(
      sizes, dtype, sharding=partitioning.replicated(mesh)
    )

  def keys(length):
    slots = shape(2, length, dtype=jnp.int32)
    return KVCache(
      shape(2, kv_heads, head_dim, length),
      shape(2, kv_heads, length, head_dim),
      slots,
      slots,
    )

  sinks = shape(heads) if settings.pop('sinks', False) else None

  def gradients(q, new, cache, sinks):
    def total(q, k, v):
      out = flash.attend(
        q,
        new.replace(k=k, v=v),
        [cache],
        mesh,
        scale=0.1,
        sinks=sinks,
        **settings,
      )
      return out.astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))(q, new.k, new.v)

  assert flash.is_for(mesh, 2, 100, head_dim, jnp.bfloat16)
  q = shape(2, 100, heads, head_dim)
  _, found = aot.compile_program(
    jax.jit(gradients).lower(q, keys(100), keys(600), sinks), target
  )
  # Forward, for queries, for new keys and values.
  assert found['pallas_kernels'] == 3
  # No scores.
  assert found['bytes']['temporaries'] < 2 * found['bytes']['arguments']


@pytest.mark.parametrize('scan_layers', [True, False])
def test_layers_apart_are_read_without_copies(scan_layers):
  config = DecoderConfig(
    vocab_size=512,
    embed_dim=1024,
    num_layers=4,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=4096,
    scan_layers=scan_layers,
  )
  target = aot.find_target('h200:1')
  mesh = partitioning.make_mesh((1, 1, 1), target.devices)
  graph, params = abstract_step.base(config, jnp.dtype('bfloat16'), mesh)

  def loss(x, params, positions):
    decoder = nnx.merge(graph, params)
    cache = decoder.encode(jax.lax.stop_gradient(x), positions)
    hidden, _ = decoder(x, positions + 512, [cache])
    return hidden.astype(jnp.float32).sum()

  def shape(*sizes, dtype):
    return jax.ShapeDtypeStruct(
      sizes, dtype, sharding=partitioning.replicated(mesh)
    )

  compiled, found = aot.compile_program(
    jax.jit(jax.grad(loss)).lower(
      shape(4, 512, config.embed_dim, dtype=jnp.bfloat16),
      params,
      shape(4, 512, dtype=jnp.int32),
    ),
    target,
  )
  assert found['fits']
  # A kernel that writes the weights of one layer's MLP.
  copies = re.findall(
    r'%\S*slice\S* = bf16\[1,(?:1024,4096|4096,1024)\]\S* fusion',
    compiled.as_text(),
  )
  assert bool(copies) == scan_layers
