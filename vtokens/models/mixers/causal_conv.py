"""Short causal convolutions over the tokens of packed sequences.

Each channel has its own kernel of k numbers (a depthwise convolution). The
output at a token depends on the token and the k - 1 tokens before it in its
segment. Before a segment's first token come the last inputs of the segment that
it continues.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models.mixers.packed_segments import (
  SegmentOrder,
  moved,
  rows_at,
  values_at,
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
    x: inputs; padding is not read.
    weight: kernel of each channel; its last number multiplies the token's own
      input.
    order: the segments; see `packed_segments.segment_order`.
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
  """The last inputs of each segment, `initial` before its tokens."""
  last = []
  for entry in range(window):
    # Number of the input, counted from the first input of `initial`.
    number = order.counts + entry
    new = number >= window
    place = order.first + number - window
    index = values_at(order.sorted, jnp.clip(place, 0, x.shape[1] - 1))
    found = jnp.where(new[..., None], rows_at(x, index), 0)
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
  found = rows_at(initial.reshape(rows, count * window, channels), index)
  return jnp.where((inside & (parents >= 0))[..., None], found, 0)


def _earlier(
  x: Float[Array, 'B T C'], order: SegmentOrder, back: int
) -> Float[Array, 'B T C']:
  """The input `back` tokens before each token in its segment, or 0."""
  length = x.shape[1]

  def index(by: int, within: Any) -> Int[Array, 'B T']:
    place = jnp.clip(order.place + by, 0, length - 1)
    return jnp.where(within, values_at(order.sorted, place), -1)

  before = order.number >= back
  # The token `back` later, whose gradient the input gets.
  place = jnp.clip(order.place + back, 0, length - 1)
  after = (order.number >= 0) & (order.place + back < length)
  later = values_at(order.number, values_at(order.sorted, place))
  after &= later == order.number + back
  return moved(x, index(-back, before), index(back, after))
