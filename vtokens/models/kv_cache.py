"""Keys and values of tokens, for later tokens."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class KVCache:
  """Keys and values of tokens that later tokens may attend to.

  A model has one cache with a leading layer axis. Inside the scan over layers,
  each layer has one without it. The axes are in the order in which the matrix
  products read them, so that nothing is transposed.

  Attributes:
    k: keys, rotated for their positions.
    v: values.
    positions: position of each slot's token, array of shape [B, S], int32,
      shared by all layers; -1 marks an empty slot, which no query sees.
    segments: number of the packed sequence that each slot belongs to, array of
      shape [B, S], int32; None if a row is one sequence, or if the slots
      precede every sequence of the row.
  """

  k: Float[Array, '*L B K H S']
  v: Float[Array, '*L B K S H']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S'] | None = None

  def with_room(self, slots: int) -> 'KVCache':
    """This cache followed by empty slots, for `write`."""
    pad = [(0, 0)] * (self.k.ndim - 2)
    positions, segments = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, slots)], constant_values=-1),
      (self.positions, self.segments),
    )
    return KVCache(
      k=jnp.pad(self.k, [*pad, (0, 0), (0, slots)]),
      v=jnp.pad(self.v, [*pad, (0, slots), (0, 0)]),
      positions=positions,
      segments=segments,
    )

  def write(self, other: 'KVCache', slot: Int[Array, '']) -> 'KVCache':
    """This cache with its slots from `slot` on overwritten by the other's."""
    put = jax.lax.dynamic_update_slice_in_dim
    positions, segments = jax.tree.map(
      lambda x, y: put(x, y, slot, axis=1),
      (self.positions, self.segments),
      (other.positions, other.segments),
    )
    return KVCache(
      k=put(self.k, other.k, slot, axis=self.k.ndim - 1),
      v=put(self.v, other.v, slot, axis=self.v.ndim - 2),
      positions=positions,
      segments=segments,
    )
