"""Causal grouped-query attention over caches and the new tokens."""

from collections.abc import Sequence

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vtokens.models import layers
from vtokens.models.config import DecoderConfig


@struct.dataclass
class KVCache:
  """Keys and values of tokens that later tokens may attend to.

  One per model with a leading layer axis (`L B K S H`); one per layer without
  it inside the scan over layers. Heads come before slots because matrix
  products want it so: nothing is transposed when a cache is read.

  Attributes:
    k: keys, rotated for their positions.
    v: values.
    positions: position of each slot's token, `B S` int32; -1 marks a slot
      that holds nothing, which no query sees. Shared by all layers.
  """

  k: Float[Array, '*L B K S H']
  v: Float[Array, '*L B K S H']
  positions: Int[Array, 'B S']

  def with_room(self, slots: int) -> 'KVCache':
    """This cache followed by empty slots, for `write`."""
    pad = [(0, 0)] * (self.k.ndim - 2) + [(0, slots), (0, 0)]
    return KVCache(
      k=jnp.pad(self.k, pad),
      v=jnp.pad(self.v, pad),
      positions=jnp.pad(
        self.positions, [(0, 0), (0, slots)], constant_values=-1
      ),
    )

  def write(self, other: 'KVCache', slot: Int[Array, '']) -> 'KVCache':
    """This cache with the other's slots in place of its own from `slot` on."""
    put = jax.lax.dynamic_update_slice_in_dim
    return KVCache(
      k=put(self.k, other.k, slot, axis=self.k.ndim - 2),
      v=put(self.v, other.v, slot, axis=self.v.ndim - 2),
      positions=put(self.positions, other.positions, slot, axis=1),
    )


# Queries attended at a time. Later ones of the same call cannot be seen, so
# their scores need not be computed: at 512 tokens, 5/8 of the work remain.
_QUERY_BLOCK = 128


def attend(
  q: Float[Array, 'B T N H'],
  new: KVCache,
  caches: Sequence[KVCache],
) -> Float[Array, 'B T N H']:
  """Softmax attention of new tokens over caches and one another.

  The only mask is by position: a query sees the slots whose position is not
  negative and not beyond its own. The keys of all caches and of the new
  tokens share one softmax without being concatenated. Scores and softmax are
  f32.

  Args:
    q: rotated queries of the new tokens.
    new: rotated keys, values and positions of the same tokens. In each row
      positions rise from slot to slot, padding (-1) apart.
    caches: what came before them, in any number of parts.

  Returns:
    Attended values in q's dtype. Rows whose position is -1 hold garbage.
  """
  b, t, n, h = q.shape
  groups = n // new.k.shape[1]
  q = q.reshape(b, t, -1, groups, h).transpose(0, 2, 1, 3, 4) * h**-0.5
  blocks = []
  for start in range(0, t, _QUERY_BLOCK):
    stop = min(start + _QUERY_BLOCK, t)
    seen = KVCache(
      k=new.k[:, :, :stop],
      v=new.v[:, :, :stop],
      positions=new.positions[:, :stop],
    )
    blocks.append(
      _attend_block(
        q[:, :, start:stop],
        new.positions[:, start:stop],
        [*caches, seen],
      )
    )
  out = jnp.concatenate(blocks, axis=2)
  return out.transpose(0, 2, 1, 3, 4).reshape(b, t, n, h)


def _attend_block(
  q: Float[Array, 'B K T G H'],
  positions: Int[Array, 'B T'],
  caches: Sequence[KVCache],
) -> Float[Array, 'B K T G H']:
  """One softmax over the slots of several caches."""

  def scores_over(cache: KVCache) -> Float[Array, 'B K T G S']:
    scores = jnp.einsum(
      'bktgh,bksh->bktgs', q, cache.k, preferred_element_type=jnp.float32
    )
    slot = cache.positions[:, None, None, None, :]
    query = positions[:, None, :, None, None]
    # A finite stand-in for -inf: a padding query sees no slot at all, and
    # its (unused) softmax must not become NaN.
    return jnp.where(
      (slot >= 0) & (slot <= query), scores, jnp.finfo(jnp.float32).min
    )

  scores = jnp.concatenate([scores_over(cache) for cache in caches], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  parts, start = [], 0
  for cache in caches:
    stop = start + cache.k.shape[2]
    parts.append(
      jnp.einsum('bktgs,bksh->bktgh', weights[..., start:stop], cache.v)
    )
    start = stop
  return sum(parts[1:], parts[0])


class Attention(nnx.Module):
  """Projections around `attend`."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    d, h = config.embed_dim, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    self.q = layers.param(rngs, (d, n, h), ('embed', 'heads', 'head'), dtype)
    self.k = layers.param(rngs, (d, k, h), ('embed', 'kv_heads', 'head'), dtype)
    self.v = layers.param(rngs, (d, k, h), ('embed', 'kv_heads', 'head'), dtype)
    self.o = layers.param(rngs, (n, h, d), ('heads', 'head', 'embed'), dtype)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    angles: tuple[Array, Array],
    caches: Sequence[KVCache],
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    q = layers.rotate(jnp.einsum('btd,dnh->btnh', x, self.q[...]), angles)
    k = layers.rotate(jnp.einsum('btd,dkh->btkh', x, self.k[...]), angles)
    v = jnp.einsum('btd,dkh->btkh', x, self.v[...])
    new = KVCache(k=k.swapaxes(1, 2), v=v.swapaxes(1, 2), positions=positions)
    out = attend(q, new, caches)
    return jnp.einsum('btnh,nhd->btd', out, self.o[...]), new
