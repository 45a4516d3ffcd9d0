"""The frozen language model: a Llama-type decoder in Flax NNX."""

from collections.abc import Sequence

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models import layers
from vtokens.models.attention import Attention, KVCache
from vtokens.models.config import DecoderConfig


class Block(nnx.Module):
  """One pre-norm decoder layer."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    dim, eps = config.embed_dim, config.norm_eps
    self.attention_norm = layers.RMSNorm(dim, eps, dtype, rngs)
    self.attention = Attention(config, dtype, rngs)
    self.mlp_norm = layers.RMSNorm(dim, eps, dtype, rngs)
    self.mlp = layers.GatedMLP(dim, config.mlp_dim, dtype, rngs)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    angles: tuple[Array, Array],
    caches: Sequence[KVCache],
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    out, new = self.attention(self.attention_norm(x), positions, angles, caches)
    x = x + out
    return x + self.mlp(self.mlp_norm(x)), new


class Decoder(nnx.Module):
  """Decoder-only transformer with its layers stacked under one scan.

  Attributes:
    config: the architecture.
    embedding: `V D`.
    layers: a `Block` whose weights have a leading axis of L layers.
    norm: the final norm.
    head: `D V`, or None where it is the embedding transposed.
  """

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.config = config
    self.embedding = layers.param(
      rngs, (config.vocab_size, config.embed_dim), ('vocab', 'embed'), dtype
    )
    self.layers = nnx.vmap(
      lambda rngs: Block(config, dtype, rngs), in_axes=0, out_axes=0
    )(rngs.fork(split=config.num_layers))
    self.norm = layers.RMSNorm(config.embed_dim, config.norm_eps, dtype, rngs)
    self.head = nnx.data(
      None
      if config.tie_embeddings
      else layers.param(
        rngs, (config.embed_dim, config.vocab_size), ('embed', 'vocab'), dtype
      )
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    caches: Sequence[KVCache] = (),
    *,
    remat: bool = False,
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    """Runs T new tokens per row after those in the caches.

    The one call of the model: passages without a cache, virtual tokens and
    question after the passages' cache, and single tokens after both while
    generating.

    Args:
      x: embeddings of the new tokens.
      positions: their positions in the sequence, int32; -1 marks padding.
      caches: keys and values of the tokens before them, in any number of
        parts, so that a part that never changes need not be copied.
      remat: recompute each layer in the backward pass instead of keeping its
        activations.

    Returns:
      The hidden states after the final norm (what `logits` takes), and the
      keys and values of the new tokens alone: the caller decides whether to
      drop them, make them a cache of their own or `write` them into one.
    """
    angles = layers.rope_angles(
      positions, self.config.head_dim, self.config.rope_theta
    )
    block, weights = nnx.split(self.layers)

    def body(x, layer):
      weights, kv = layer
      parts = [
        KVCache(k=k, v=v, positions=cache.positions)
        for (k, v), cache in zip(kv, caches, strict=True)
      ]
      x, new = nnx.merge(block, weights)(x, positions, angles, parts)
      return x, (new.k, new.v)

    if remat:
      body = jax.checkpoint(body, prevent_cse=False)
    kv = [(cache.k, cache.v) for cache in caches]
    x, (k, v) = jax.lax.scan(body, x, (weights, kv))
    return self.norm(x), KVCache(k=k, v=v, positions=positions)

  def embed(self, ids: Int[Array, '*B T']) -> Float[Array, '*B T D']:
    """Embeddings of ordinary token ids, each below `vocab_size`."""
    return self.embedding[...][ids]

  def logits(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    """Next-token logits, f32. There are none for virtual tokens."""
    if self.head is None:
      return jnp.einsum(
        '...d,vd->...v',
        hidden,
        self.embedding[...],
        preferred_element_type=jnp.float32,
      )
    return jnp.einsum(
      '...d,dv->...v',
      hidden,
      self.head[...],
      preferred_element_type=jnp.float32,
    )


def abstract_decoder(config: DecoderConfig, dtype: jnp.dtype) -> Decoder:
  """The decoder with shapes in place of arrays; nothing is allocated."""
  return nnx.eval_shape(lambda: Decoder(config, dtype, nnx.Rngs(0)))
