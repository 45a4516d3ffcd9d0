"""Keys and values of tokens in one layer, for later tokens."""

from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class KVCache:
  """Keys and values of one layer, to which later tokens may attend.

  The axes are in the order in which the matrix products read them, so that
  nothing is transposed. `cache.Cache` is the cache of all layers.

  Attributes:
    k: keys, rotated for their positions.
    v: values.
    positions: position of each slot's token, array of shape [B, S], int32,
      shared by all layers; -1 marks an empty slot, which no query sees.
    segments: number of the packed sequence that each slot belongs to, array of
      shape [B, S], int32; None if a row is one sequence, or if the slots
      precede every sequence of the row.
  """

  k: Float[Array, 'B K H S']
  v: Float[Array, 'B K S H']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S'] | None = None
