"""The tokens of packed segments in order, and in chunks of equal length.

Recurrent layers run over the tokens of each segment. Segments may stand in any
order in a row, and padding anywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models.layer_inputs import LayerInputs


@dataclasses.dataclass(frozen=True)
class SegmentOrder:
  """Where the tokens of each segment stand in their rows.

  All arrays are int32.

  Attributes:
    sorted: index of each real token, segment after segment, then of padding;
      array of shape [B, T].
    place: place of each token in `sorted`; array of shape [B, T].
    own: segment of each token; array of shape [B, T]; G for padding.
    number: number of each token in its segment; array of shape [B, T]; -1 for
      padding.
    counts: number of tokens of each segment; array of shape [B, G].
    first: place in `sorted` of the first token of each segment; array of shape
      [B, G].
    parents: earlier segment that each token continues; array of shape [B, T];
      -1 for padding.
    of_segments: earlier segment that each segment continues; array of shape
      [B, G]; -1 for a segment without tokens, unless it continues the earlier
      segment of its number.
  """

  sorted: Int[Array, 'B T']
  place: Int[Array, 'B T']
  own: Int[Array, 'B T']
  number: Int[Array, 'B T']
  counts: Int[Array, 'B G']
  first: Int[Array, 'B G']
  parents: Int[Array, 'B T']
  of_segments: Int[Array, 'B G']


def segment_order(
  positions: Int[Array, 'B T'],
  segments: Int[Array, 'B T'] | None,
  parents: Int[Array, 'B T'] | None,
  count: int,
) -> SegmentOrder:
  """Finds the tokens of each segment, in whatever order segments stand.

  Args:
    positions: positions of the tokens; -1 marks padding, which may stand
      anywhere, also within a segment.
    segments: segment of each token, below `count`; None if a row is one
      segment.
    parents: earlier segment that each token continues; None if it has the
      number of the token's own segment.
    count: number of segments of a row (G).
  """
  real = positions >= 0
  if segments is None:
    segments = jnp.zeros_like(positions)
  own = jnp.where(real, segments, count)
  # Stable: tokens of a segment keep their order.
  order = jnp.argsort(own, axis=1, stable=True).astype(jnp.int32)
  place = jnp.argsort(order, axis=1).astype(jnp.int32)
  numbers = jnp.arange(count, dtype=jnp.int32)
  counts = (own[..., None] == numbers).sum(axis=1, dtype=jnp.int32)
  first = jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
  number = place - values_at(first, jnp.minimum(own, count - 1))
  if parents is None:
    continued = jnp.broadcast_to(numbers, counts.shape)
    parents = own
  else:
    # All tokens of a segment continue the same segment.
    start = values_at(order, jnp.minimum(first, order.shape[1] - 1))
    continued = jnp.where(counts > 0, values_at(parents, start), -1)
  return SegmentOrder(
    order,
    place,
    own,
    jnp.where(real, number, -1),
    counts,
    first,
    jnp.where(real, parents, -1),
    continued,
  )


def order_of(tokens: LayerInputs, earlier: int | None) -> SegmentOrder:
  """The segments of a layer's new tokens.

  Args:
    tokens: the new tokens.
    earlier: number of segments of the cache that they continue; None if there
      is no cache.
  """
  order = segment_order(
    tokens.positions, tokens.segments, tokens.parents, tokens.num_segments
  )
  if earlier != 1:
    return order
  # All segments of a row continue the same prefix.
  parents = jnp.where(order.number >= 0, 0, -1)
  none = jnp.zeros_like(order.of_segments)
  return dataclasses.replace(order, parents=parents, of_segments=none)


@dataclasses.dataclass(frozen=True)
class Chunks:
  """Parts of equal length of the segments, for scans by matrix products.

  Each chunk has tokens of one segment. The last chunk of a segment may have
  empty slots at its end. All arrays are int32.

  Attributes:
    length: slots of a chunk (Q).
    sources: index of the token in each slot; array of shape [B, M * Q]; -1 for
      an empty slot.
    slots: slot of each token; array of shape [B, T]; -1 for padding.
    segments: segment of each chunk; array of shape [B, M]; G for a chunk
      without tokens.
    parents: earlier segment that the segment of each chunk continues; array of
      shape [B, M]; -1 if the chunk has no tokens.
    last: last chunk of each segment; array of shape [B, G]; -1 for a segment
      without tokens.
  """

  length: int
  sources: Int[Array, 'B MQ']
  slots: Int[Array, 'B T']
  segments: Int[Array, 'B M']
  parents: Int[Array, 'B M']
  last: Int[Array, 'B G']

  def split(self, x: Float[Array, 'B T C']) -> Float[Array, 'B M Q C']:
    """The rows of each chunk; 0 in empty slots."""
    found = moved(x, self.sources, self.slots)
    return found.reshape(len(x), -1, self.length, x.shape[2])

  def join(self, x: Float[Array, 'B M Q C']) -> Float[Array, 'B T C']:
    """The inverse of `split`; 0 at padding."""
    rows = x.reshape(len(x), -1, x.shape[3])
    joined: Array = moved(rows, self.slots, self.sources)
    return joined


def chunks(order: SegmentOrder, length: int | None = None) -> Chunks:
  """Splits the segments into chunks.

  Args:
    order: the segments.
    length: tokens of a chunk; None for `chunk_length`.
  """
  tokens, count = order.own.shape[1], order.counts.shape[1]
  length = length or chunk_length(tokens, count)
  # The most chunks that any lengths of the segments need.
  number = min(tokens, (tokens + count * (length - 1)) // length)
  needed = -(-order.counts // length)
  stop = jnp.cumsum(needed, axis=1, dtype=jnp.int32)
  start = stop - needed
  indices = jnp.arange(number, dtype=jnp.int32)
  # The number of segments that end before the chunk.
  segments = (stop[:, None, :] <= indices[:, None]).sum(-1, dtype=jnp.int32)
  inside = jnp.minimum(segments, count - 1)
  chunk = indices - values_at(start, inside)
  slot = chunk[..., None] * length + jnp.arange(length, dtype=jnp.int32)
  full = slot < values_at(order.counts, inside)[..., None]
  full &= (segments < count)[..., None]
  place = jnp.where(full, slot + values_at(order.first, inside)[..., None], 0)
  flat = (len(order.own), number * length)
  sources = values_at(order.sorted, place.reshape(flat))
  own_start = values_at(start, jnp.minimum(order.own, count - 1))
  return Chunks(
    length,
    jnp.where(full.reshape(flat), sources, -1),
    jnp.where(order.number >= 0, own_start * length + order.number, -1),
    segments,
    jnp.where(segments < count, values_at(order.of_segments, inside), -1),
    jnp.where(needed > 0, stop - 1, -1),
  )


def chunk_length(tokens: int, count: int) -> int:
  """Length of chunks that takes little work.

  Products within a chunk grow with its length, products between chunks with
  their number, and short segments fill a part of their chunk only.

  Args:
    tokens: tokens of a row.
    count: segments of a row.
  """
  length = 1
  while length < 64 and 4 * length * count <= tokens:
    length *= 2
  while tokens > 128 * length and length < 256:
    length *= 2
  return length


def of_parents(
  initial: Float[Array, 'B P *C'], parents: Int[Array, 'B N']
) -> Float[Array, 'B N *C']:
  """States of earlier segments; 0 for a negative number.

  Args:
    initial: state of each earlier segment.
    parents: numbers of earlier segments.
  """
  index = jnp.clip(parents, 0, initial.shape[1] - 1)
  shape = (*index.shape, *(1,) * (initial.ndim - 2))
  found = jnp.take_along_axis(initial, index.reshape(shape), axis=1)
  return jnp.where((parents >= 0).reshape(shape), found, 0)


@jax.custom_vjp
def moved(
  x: Float[Array, 'B T C'],
  sources: Int[Array, 'B T'],
  targets: Int[Array, 'B T'],
) -> Float[Array, 'B T C']:
  """Moves rows within their batch row.

  The derivative moves them back. That of a plain gather adds rows one by one.

  Args:
    x: the rows.
    sources: index of the row that comes to each place; -1 for a row of zeros.
    targets: index of the place that each row comes to; -1 for none.
  """
  del targets
  return jnp.where((sources >= 0)[..., None], rows_at(x, sources), 0)


def _moved_forward(x: Array, sources: Array, targets: Array) -> Any:
  return moved(x, sources, targets), (sources, targets)


def _moved_backward(places: Any, gradient: Array) -> Any:
  sources, targets = places
  return moved(gradient, targets, sources), None, None


moved.defvjp(_moved_forward, _moved_backward)


def rows_at(
  x: Float[Array, 'B T C'], index: Int[Array, 'B N']
) -> Float[Array, 'B N C']:
  """Some rows; row 0 for negative indices."""
  found: Array = jnp.take_along_axis(
    x, jnp.maximum(index, 0)[..., None], axis=1
  )
  return found


def values_at(values: Int[Array, 'B N'], index: Int[Array, 'B M']) -> Array:
  """Some values of each row."""
  found: Array = jnp.take_along_axis(values, index, axis=1)
  return found
