"""`encode`: the cache of `__call__`, and no work beyond it."""

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
