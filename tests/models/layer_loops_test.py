"""`encode` makes the cache of `__call__` and no more; layers without a scan."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Without

# Layers with attention alone and layers with an MLP alone, in turn. The last
# has no cache.
CONFIG = DecoderConfig(
  vocab_size=32,
  embed_dim=16,
  num_layers=4,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=512,
  layer_pattern=(LayerKind(mlp=Without()), LayerKind(mixer=Without())),
)
POSITIONS = jnp.arange(6)[None]


def _encoded(config):
  """A decoder, embeddings, and `encode` of them, compiled."""
  graph, params = nnx.split(Decoder(config, jnp.float32, nnx.Rngs(0)))
  x = jax.random.normal(jax.random.key(1), (1, 6, config.embed_dim))
  run = jax.jit(lambda params, x: nnx.merge(graph, params).encode(x, POSITIONS))
  return nnx.merge(graph, params), x, run.lower(params, x).compile(), params


def test_encode_makes_the_cache_and_no_more():
  decoder, x, encode, params = _encoded(CONFIG)
  _, expected = decoder(x, POSITIONS)
  found = encode(params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
    found,
    expected,
  )
  assert len(jax.tree.leaves(found.stacks)) == 2
  shorter = dataclasses.replace(CONFIG, num_layers=3)
  _, _, without_last, _ = _encoded(shorter)
  flops, least = (
    one.cost_analysis()['flops'] for one in (encode, without_last)
  )
  # A layer with an MLP adds half of it.
  assert flops < 1.1 * least


def test_layers_without_a_scan_compute_the_same():
  config = dataclasses.replace(CONFIG, layer_pattern=(LayerKind(),))
  apart = dataclasses.replace(config, scan_layers=False)
  whole, params = nnx.split(Decoder(config, jnp.float32, nnx.Rngs(0)))
  graph, other = nnx.split(Decoder(apart, jnp.float32, nnx.Rngs(1)))
  # The same weights: each layer has a stack of its own.
  stack = params['layers']
  layers = {
    i: jax.tree.map(lambda x, i=i: x[i : i + 1], stack) for i in other['layers']
  }
  other = nnx.State({**params, 'layers': nnx.State(layers)})

  def loss(params, x, graph):
    decoder = nnx.merge(graph, params)
    cache = decoder.encode(x, POSITIONS)
    hidden, _ = decoder(2 * x, POSITIONS + 6, [cache])
    return jnp.square(decoder.logits(hidden)).mean()

  x = jax.random.normal(jax.random.key(1), (1, 6, config.embed_dim))
  step = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=2)
  expected = step(params, x, whole)
  found = step(other, x, graph)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    found,
    expected,
  )
  programs = [
    step.lower(*arguments).compile().as_text()
    for arguments in ((params, x, whole), (other, x, graph))
  ]
  assert [' while(' in program for program in programs] == [True, False]
