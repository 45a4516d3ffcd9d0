"""Short causal convolutions over the tokens of packed sequences.

Each channel has its own kernel of k numbers (a depthwise convolution). The
output at a token depends on the token and the k - 1 tokens before it in its
segment, at the first tokens of a segment on the last inputs of the segment that
it continues.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class SegmentOrder:
  """Where the tokens of each segment stand in their rows.

  All arrays are int32.

  Attributes:
    sorted: index of each real token, segment after segment, then of padding;
      array of shape [B, T].
    place: place of each token in `sorted`; array of shape [B, T].
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
  number = place - _at(first, jnp.minimum(own, count - 1))
  if parents is None:
    continued = jnp.broadcast_to(numbers, counts.shape)
    parents = own
  else:
    # All tokens of a segment continue the same segment.
    start = _at(order, jnp.minimum(first, order.shape[1] - 1))
    continued = jnp.where(counts > 0, _at(parents, start), -1)
  return SegmentOrder(
    order,
    place,
    jnp.where(real, number, -1),
    counts,
    first,
    jnp.where(real, parents, -1),
    continued,
  )


def convolve(
  x: Float[Array, 'B T C'],
  weight: Float[Array, 'C k'],
  order: SegmentOrder,
  *,
  bias: Float[Array, 'C'] | None = None,
  initial: Float[Array, 'B P W C'] | None = None,
) -> tuple[Float[Array, 'B T C'], Float[Array, 'B G W C']]:
  """Convolves the inputs of each segment, summed in float32.

  Args:
    x: inputs; those of padding are not read.
    weight: kernel of each channel; its last number multiplies the token's own
      input.
    order: the segments; see `segment_order`.
    bias: is added to the outputs.
    initial: the last W = k - 1 inputs of the P earlier segments; None for
      zeros.

  Returns:
    The outputs in x's dtype, 0 at padding; and the last W inputs of each
    segment in x's dtype, among them `initial` if a segment has fewer tokens.
  """
  window = weight.shape[1] - 1
  weight = weight.astype(jnp.float32)
  y = x.astype(jnp.float32) * weight[:, window]
  for back in range(1, window + 1):
    earlier = _earlier(x, order, back)
    if initial is not None:
      # Number of the input in the window. It is one only for the first tokens.
      number = order.number - back + window
      inside = (number < window) & (number >= 0) & (order.number >= 0)
      earlier = earlier + _of_window(initial, order.parents, number, inside)
    y = y + earlier.astype(jnp.float32) * weight[:, window - back]
  if bias is not None:
    y = y + bias.astype(jnp.float32)
  y = jnp.where((order.number >= 0)[..., None], y, 0).astype(x.dtype)
  return y, _last_inputs(x, order, initial, window)


def _last_inputs(
  x: Float[Array, 'B T C'],
  order: SegmentOrder,
  initial: Float[Array, 'B P W C'] | None,
  window: int,
) -> Float[Array, 'B G W C']:
  """The last inputs of each segment, after those of `initial`."""
  last = []
  for entry in range(window):
    # Number of the input, counted from the first input of `initial`.
    number = order.counts + entry
    new = number >= window
    place = order.first + number - window
    index = _at(order.sorted, jnp.clip(place, 0, x.shape[1] - 1))
    found = jnp.where(new[..., None], _rows(x, index), 0)
    if initial is not None:
      found = found + _of_window(initial, order.of_segments, number, ~new)
    last.append(found)
  if not last:
    return jnp.zeros((*order.counts.shape, 0, x.shape[2]), x.dtype)
  return jnp.stack(last, axis=2)


def _of_window(
  initial: Float[Array, 'B P W C'],
  parents: Int[Array, 'B N'],
  number: Int[Array, 'B N'],
  inside: Any,
) -> Float[Array, 'B N C']:
  """Inputs of earlier segments; 0 if not inside or without a parent."""
  rows, count, window, channels = initial.shape
  index = jnp.clip(parents, 0, count - 1) * window
  index = index + jnp.clip(number, 0, window - 1)
  found = _rows(initial.reshape(rows, count * window, channels), index)
  return jnp.where((inside & (parents >= 0))[..., None], found, 0)


def _earlier(
  x: Float[Array, 'B T C'], order: SegmentOrder, back: int
) -> Float[Array, 'B T C']:
  """The input `back` tokens before each token in its segment, or 0."""
  length = x.shape[1]

  def moved(by: int, within: Any) -> Int[Array, 'B T']:
    place = jnp.clip(order.place + by, 0, length - 1)
    return jnp.where(within, _at(order.sorted, place), -1)

  before = order.number >= back
  # The token `back` later, whose gradient the input gets.
  place = jnp.clip(order.place + back, 0, length - 1)
  after = (order.number >= 0) & (order.place + back < length)
  later = _at(order.number, _at(order.sorted, place))
  after &= later == order.number + back
  return _moved(x, moved(-back, before), moved(back, after))


@jax.custom_vjp
def _moved(
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
  return jnp.where((sources >= 0)[..., None], _rows(x, sources), 0)


def _moved_forward(x: Array, sources: Array, targets: Array) -> Any:
  return _moved(x, sources, targets), (sources, targets)


def _moved_backward(places: Any, gradient: Array) -> Any:
  sources, targets = places
  return _moved(gradient, targets, sources), None, None


_moved.defvjp(_moved_forward, _moved_backward)


def _rows(
  x: Float[Array, 'B T C'], index: Int[Array, 'B N']
) -> Float[Array, 'B N C']:
  """Some rows; row 0 for negative indices."""
  found: Array = jnp.take_along_axis(
    x, jnp.maximum(index, 0)[..., None], axis=1
  )
  return found


def _at(values: Int[Array, 'B N'], index: Int[Array, 'B M']) -> Array:
  found: Array = jnp.take_along_axis(values, index, axis=1)
  return found
