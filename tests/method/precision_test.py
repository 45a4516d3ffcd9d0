"""Products of a float32 base are exact, without a setting of the process."""

import jax
import jax.numpy as jnp
import pytest

from vtokens import config
from vtokens.devices import partitioning
from vtokens.method import generate, optim, steps
from vtokens.models import frozen_base
from vtokens.models.decoder_config import DecoderConfig
from vtokens.planning import abstract_step

BASE = DecoderConfig(
  vocab_size=96,
  embed_dim=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_dim=64,
)
EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def products(jaxpr) -> list:
  """Precision of every product in a program and the programs within it."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      found.append(equation.params['precision'])
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'),
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        found += products(inner)
  return found


def programs(dtype: str, quantize: str):
  mesh = partitioning.make_mesh((-1, 1, 1))
  graph, params = abstract_step.base(BASE, jnp.dtype(dtype), mesh, quantize)
  optimizer = optim.make_optimizer(config.Optim(warmup_steps=2), 10)
  table = jax.ShapeDtypeStruct((4, 64), jnp.float32)
  state = abstract_step.state(optimizer, table, mesh)
  batch = abstract_step.batch(2, (32, 16), 4, mesh, per_row=1)
  step = steps.make_train_step(graph, optimizer, accumulation_steps=2)
  yield jax.make_jaxpr(step)(state, params, batch)
  yield jax.make_jaxpr(
    lambda params, ids: generate.encode_prefix(params, ids, ids, graph=graph)
  )(params, batch.prefix)


@pytest.mark.parametrize('quantize', ['none', 'int8', 'int4'])
def test_float32(quantize):
  for program in programs('float32', quantize):
    found = products(program.jaxpr)
    assert len(found) > 6
    assert set(found) == {EXACT}


def test_others_are_left_alone():
  for program in programs('bfloat16', 'none'):
    found = products(program.jaxpr)
    assert len(found) > 6
    assert EXACT not in found


def test_loading_sets_nothing(tiny_dir):
  before = jax.config.jax_default_matmul_precision
  settings = config.Base(path=str(tiny_dir), dtype='float32')
  frozen_base.load_base(settings, partitioning.make_mesh((-1, 1, 1)))
  assert jax.config.jax_default_matmul_precision == before is None
