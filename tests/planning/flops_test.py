"""Tests of vtokens.planning.flops, against products counted one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vtokens.devices import chips
from vtokens.method import losses
from vtokens.models.abstract import abstract_decoder
from vtokens.models.altup import AltUp
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import (
  DecoderConfig,
  LayerKind,
  Without,
  attends,
)
from vtokens.models.mixers.delta_net import DeltaNet
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.models.mixers.mamba2 import Mamba2
from vtokens.models.mixers.parallel_mixer import ParallelMixer
from vtokens.models.mixers.shared_heads import Heads
from vtokens.models.mixers.short_conv import ShortConv
from vtokens.planning import flops, matrices

_CONFIG = DecoderConfig(
  vocab_size=96,
  embed_dim=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_dim=128,
)


def test_matrix_weights():
  params = nnx.state(Decoder(_CONFIG, jnp.float32, nnx.Rngs(0)))
  sizes = {
    jax.tree_util.keystr(path): leaf.size
    for path, leaf in jax.tree.leaves_with_path(params)
  }
  layers = [
    size
    for name, size in sizes.items()
    if 'layers' in name and 'norm' not in name
  ]
  assert flops.matrix_weights(_CONFIG) == sum(layers)


def _products(jaxpr) -> float:
  """FLOPs of all matrix products of a program, loops by their length."""
  total = 0.0
  for eqn in jaxpr.eqns:
    times = eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else 1
    for value in eqn.params.values():
      for part in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(part, 'jaxpr', part)
        if hasattr(inner, 'eqns'):
          total += times * _products(inner)
    if eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      left, out = eqn.invars[0].aval, eqn.outvars[0].aval
      size = 2.0
      for axis in contract:
        size *= left.shape[axis]
      for axis in out.shape:
        size *= axis
      total += size
  return total


def test_a_step_without_passages():
  """Forward and backward of a suffix that sees only itself.

  The program computes all pairs of a block, where only those at or below the
  diagonal are needed; of few tokens that is a small part.
  """
  length, targets = 16, 5
  decoder = Decoder(_CONFIG, jnp.float32, nnx.Rngs(0))
  graph, params = nnx.split(decoder)

  def loss(x):
    model = nnx.merge(graph, jax.lax.stop_gradient(params))
    hidden, _ = model(x, jnp.arange(length)[None])
    logits = model.logits(hidden[:, :targets])
    ids = jnp.zeros((1, targets), jnp.int32)
    return losses.masked_nll(logits, ids, ids == 0)[0]

  x = jnp.zeros((1, length, _CONFIG.embed_dim))
  counted = _products(jax.make_jaxpr(jax.grad(loss))(x).jaxpr)
  pair = 4 * _CONFIG.num_layers * _CONFIG.num_heads * _CONFIG.head_dim
  above = length * length - length * (length + 1) / 2
  expected = flops.train_flops(_CONFIG, [(0, 0, length, targets)])
  assert counted == expected + 3 * pair * above


_LATENT = dataclasses.replace(
  _CONFIG,
  attention=LatentAttention(rank=24, plain=10, rotated=6, value=8),
  num_kv_heads=1,
  rotary_dim=6,
)


# Latent attention absorbs its matrices for few tokens after many.
@pytest.mark.parametrize(('length', 'prefix'), [(3, 40), (20, 40), (16, 0)])
def test_a_suffix_of_latent_attention(length, prefix):
  decoder = Decoder(_LATENT, jnp.float32, nnx.Rngs(0))
  graph, params = nnx.split(decoder)
  assert _LATENT.attention.is_absorbed(length, prefix) == (length == 3)

  def run(x):
    model = nnx.merge(graph, params)
    place = jnp.arange(prefix + length)[None]
    caches = []
    if prefix:
      caches = [model.encode(x[:, :prefix], place[:, :prefix])]
    return model(x[:, prefix:], place[:, prefix:], caches)[0]

  def encode(x):
    return nnx.merge(graph, params).encode(x, jnp.arange(prefix)[None])

  x = jnp.zeros((1, prefix + length, _LATENT.embed_dim))
  counted = _products(jax.make_jaxpr(run)(x).jaxpr)
  if prefix:
    counted -= _products(jax.make_jaxpr(encode)(x[:, :prefix]).jaxpr)
  # Of a teacher: forward alone.
  expected = flops.train_flops(
    _LATENT, [(0, 0, 0, 0)], [(0, prefix, length, 0)]
  )
  absorbed = length == 3
  width = 2 * 24 + 6 if absorbed else 10 + 6 + 8
  above = length * length - length * (length + 1) / 2
  pairs = 2 * _LATENT.num_layers * _LATENT.num_heads * width * above
  assert counted == expected + pairs


def test_examples_add_up():
  one = flops.train_flops(_CONFIG, [(100, 100, 20, 5)])
  other = flops.train_flops(_CONFIG, [(7, 7, 3, 1)])
  both = flops.train_flops(_CONFIG, [(100, 100, 20, 5), (7, 7, 3, 1)])
  assert both == one + other


def test_a_shared_prefix_counts_once():
  alone = flops.train_flops(_CONFIG, [(100, 100, 20, 5)])
  again = flops.train_flops(_CONFIG, [(0, 100, 20, 5)])
  prefix = flops.train_flops(_CONFIG, [(100, 100, 0, 0)])
  assert again == alone - prefix
  assert again > flops.train_flops(_CONFIG, [(0, 0, 20, 5)])


def test_what_a_token_costs():
  """2 M for one of a passage, 4 M for one behind it, attention apart."""
  products = flops.matrix_weights(_CONFIG)
  # A model without attention's pairs: differences of long and short differ by
  # them alone.
  pair = 4.0 * _CONFIG.num_layers * _CONFIG.num_heads * _CONFIG.head_dim
  prefix = flops.train_flops(_CONFIG, [(1, 1, 0, 0)])
  assert prefix == 2 * products + pair
  suffix = flops.train_flops(_CONFIG, [(0, 0, 1, 0)])
  assert suffix == 4 * products + 3 * pair
  head = flops.train_flops(_CONFIG, [(0, 0, 0, 1)])
  assert head == 4 * _CONFIG.embed_dim * _CONFIG.vocab_size


def test_what_a_token_costs_in_a_state():
  """One layer of two has a state: no pairs, but a read, a change, a write."""
  net = LayerKind(None, mixer=DeltaNet(2, 4, 8, 6, 4))
  config = dataclasses.replace(_CONFIG, layer_pattern=(net, LayerKind()))
  products = flops.matrix_weights(config)
  pair = 4.0 * config.num_heads * config.head_dim
  state = 6.0 * 4 * 8 * 6
  prefix = flops.train_flops(config, [(1, 1, 0, 0)])
  assert prefix == 2 * products + pair + state
  suffix = flops.train_flops(config, [(0, 0, 1, 0)])
  assert suffix == 4 * products + 3 * pair + 3 * state


_WIDE = dataclasses.replace(
  _CONFIG, num_layers=1, embed_dim=256, head_dim=64, mlp_dim=512
)
_MAMBA = Mamba2(heads=8, width=32, size=64, groups=2, taps=4)


def _with_mixer(mixer):
  kind = LayerKind(mixer=mixer)
  if not attends(mixer):
    kind = dataclasses.replace(kind, rope=None)
  return dataclasses.replace(_WIDE, layer_pattern=(kind,))


_PER_LAYER = dataclasses.replace(_WIDE, per_layer_dim=64)
# One layer each: XLA counts a loop over layers once. Matrices are wide enough
# that norms and activations are few of the operations.
_ANALYSED = {
  'delta net': _with_mixer(DeltaNet(2, 4, 64, 64, 4)),
  'mamba2': _with_mixer(_MAMBA),
  'short conv': _with_mixer(ShortConv(3)),
  'beside attention': _with_mixer(ParallelMixer(_MAMBA)),
  'values are keys': dataclasses.replace(
    _with_mixer(Heads(128, 1, values_are_keys=True)), qk_norm='head'
  ),
  'latent': dataclasses.replace(
    _WIDE,
    num_kv_heads=1,
    head_dim=48,
    rotary_dim=16,
    attention=LatentAttention(rank=96, plain=32, rotated=16, value=32),
  ),
  'inputs of layers': _PER_LAYER,
  'streams': dataclasses.replace(
    _PER_LAYER, post_norm=True, streams=AltUp(4, 0, True, 16)
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('short conv', 'latent')
    else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in _ANALYSED
  ],
)
def test_what_the_compiler_counts(name):
  """Forward and backward of a token after a cache, within 5 %.

  The compiler also counts norms, activations and the like, and leaves out the
  state after the last token. A recurrent layer runs token by token here; in
  chunks it takes more.
  """
  config, rows, prefix = _ANALYSED[name], 4, 40
  graph, params = nnx.split(abstract_decoder(config, jnp.dtype(jnp.float32)))

  def places(first, length):
    places = jnp.arange(first, first + length)
    return jnp.broadcast_to(places, (rows, length))

  def encode(params, x, ids):
    model = nnx.merge(graph, params)
    return model.encode(x, places(0, prefix), ids=ids)

  def loss(x, params, cache, ids):
    model = nnx.merge(graph, params)
    return model(x, places(prefix, 1), [cache], ids=ids)[0].sum()

  def inputs(length):
    return (
      jax.ShapeDtypeStruct((rows, length, config.embed_dim), jnp.float32),
      jax.ShapeDtypeStruct((rows, length), jnp.int32),
    )

  cache = jax.eval_shape(encode, params, *inputs(prefix))
  x, ids = inputs(1)
  program = jax.jit(jax.grad(loss)).lower(x, params, cache, ids).compile()
  needed = rows * flops.train_flops(config, [(0, prefix, 1, 0)])
  found = program.cost_analysis()['flops']
  assert found == pytest.approx(needed, rel=0.05)


def test_passages_stop_at_the_last_cache():
  """Layers that read the keys of others, or have an MLP alone, do not run."""
  own, shared = Heads(16, 2), Heads(16, 2, source=0)
  first = dataclasses.replace(
    _CONFIG, num_layers=1, layer_pattern=(LayerKind(mixer=own),)
  )
  kinds = [LayerKind(mixer=own), LayerKind(mixer=shared)]
  kinds.append(LayerKind(None, mixer=Without()))
  config = dataclasses.replace(
    _CONFIG, num_layers=3, layer_pattern=tuple(kinds)
  )
  assert matrices.cached_layers(config) == 1
  passages, suffix = [(30, 30, 0, 0)], [(0, 0, 30, 0)]
  assert flops.train_flops(config, passages) == flops.train_flops(
    first, passages
  )
  assert flops.train_flops(config, suffix) > 2 * flops.train_flops(
    first, suffix
  )


def test_matrices_outside_of_the_layers():
  """Inputs of layers, and streams before the first layer and after the last."""
  per_layer, streams = _ANALYSED['inputs of layers'], _ANALYSED['streams']
  found = [m.weights for m in matrices.of_ends(per_layer)]
  assert found == [256 * 64]
  assert sum(m.weights for m in matrices.of_ends(streams)) == (
    256 * 64 + 2 * 3 * 256 * 256
  )
  # Passages do not need the last ones.
  unused = flops.matrix_weights(streams) - flops.passage_weights(streams)
  later = matrices.of_layers(streams)[matrices.cached_layers(streams) :]
  assert unused == 3 * 256 * 256 + sum(
    m.active_weights for layer in later for m in layer.matrices
  )


def test_cache_of_passages():
  """Keys and values grow with the passages, states do not."""
  kept = 2 * 2 * 2 * 2 * 16  # bfloat16, keys and values, layers, heads, width
  assert matrices.cache_bytes(_CONFIG, 10) == 10 * kept
  config = _ANALYSED['delta net']
  state, channels = 4 * 4 * 64 * 64, 2 * 2 * 64 + 4 * 64
  expected = state + 2 * 3 * channels
  assert matrices.cache_bytes(config, 10) == expected
  assert matrices.cache_bytes(config, 20) == expected


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v4', 'v4'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA H100 80GB HBM3', 'H100 SXM'),
    ('NVIDIA H200', 'H200 SXM'),
    ('cpu', None),
  ],
)
def test_chips(kind, name):
  found = chips.find(kind)
  assert (found and found.name) == name


def test_a_teacher_runs_forward_only():
  """Its passages cost what a student's do, its suffix a half or less."""
  student, teacher = [(100, 100, 20, 5)], [(60, 60, 12, 5)]
  alone = flops.train_flops(_CONFIG, student)
  both = flops.train_flops(_CONFIG, student, teacher)
  passages = flops.train_flops(_CONFIG, [(60, 60, 0, 0)])
  trained = flops.train_flops(_CONFIG, teacher)
  assert passages < both - alone < (trained + passages) / 2 + 1
  # On the student's prefix it has no passages to run.
  shared = flops.train_flops(_CONFIG, student, [(0, 60, 12, 5)])
  assert shared == pytest.approx(both - passages, rel=1e-12)
