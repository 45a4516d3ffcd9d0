"""Which keys the queries of `flash` see, block by block."""

import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int

from vtokens.models import layers
from vtokens.models.kv_cache import KVCache

# Queries or keys in a block. Hopper multiplies 64 rows at a time, and few
# blocks of this size hold queries of several segments.
BLOCK = 64


@struct.dataclass
class Part:
  """Which keys of one part each query sees.

  All arrays are int32. Inside a kernel they hold one row, without the axis B. I
  counts blocks of queries, J blocks of keys. T and S are padded to whole
  blocks. If a block of queries needs no key, `first`, `begin`, `end` and `last`
  are equal.

  Attributes:
    segments: the part's segment that each query sees, shape [B, T].
    slots: positions of the keys, shape [B, S]; -1 for padding.
    numbers: segments of the keys, shape [B, S].
    first: first block of keys that each block of queries needs, shape [B, I].
    begin: first block of keys that needs no mask, because all queries see all
      its keys, shape [B, I].
    end: end of the blocks of keys that need no mask, shape [B, I].
    last: end of the blocks of keys that each block of queries needs, shape
      [B, I].
    from_row: first block of queries that needs each block of keys, shape
      [B, J].
    to_row: end of the blocks of queries that need each block of keys, shape
      [B, J].
  """

  segments: Int[Array, 'B T']
  slots: Int[Array, 'B S']
  numbers: Int[Array, 'B S']
  first: Int[Array, 'B I']
  begin: Int[Array, 'B I']
  end: Int[Array, 'B I']
  last: Int[Array, 'B I']
  from_row: Int[Array, 'B J']
  to_row: Int[Array, 'B J']


@struct.dataclass
class Masks:
  """Which keys each query sees, for all rows or, inside a kernel, for one.

  Attributes:
    positions: positions of the queries, array of shape [B, T], int32, padded to
      whole blocks; -1 for padding.
    parts: one part for each cache and one for the new tokens.
    window: array of shape [1], int32; see `attend`.
  """

  positions: Int[Array, 'B T']
  parts: tuple[Part, ...]
  window: Int[Array, '1'] | None


def make_masks(
  positions: Int[Array, 'B T'],
  parts: tuple[Part, ...],
  window: Int[Array, '1'] | None,
) -> Masks:
  """Makes the masks; `positions` need not be padded to whole blocks."""
  return Masks(_whole_blocks(positions, -1), parts, window)


def make_part(
  new: KVCache,
  segments: Int[Array, 'B T'] | None,
  keys: KVCache,
  window: Int[Array, '1'] | None,
  *,
  own: bool,
) -> Part:
  """Makes one part of the keys.

  Args:
    new: the tokens that attend.
    segments: the segment of the keys that each new token sees.
    keys: the keys of the part.
    window: see `attend`.
    own: whether the keys belong to the new tokens.
  """
  numbers = keys.segments
  if segments is None or numbers is None:
    segments, numbers = jnp.zeros_like(new.positions), keys.positions * 0
  positions, slots = (
    _whole_blocks(x, -1) for x in (new.positions, keys.positions)
  )
  segments, numbers = (_whole_blocks(x, 0) for x in (segments, numbers))
  earliest, latest = _ranges(positions, positions >= 0, 2)
  low, high = _ranges(segments, positions >= 0, 2)
  oldest, newest = _ranges(slots, slots >= 0, 1)
  least, largest = _ranges(numbers, slots >= 0, 1)
  needed: Bool[Array, 'B I J']
  needed = (least <= high) & (low <= largest) & (oldest <= latest)
  full = (slots >= 0).reshape(len(slots), 1, -1, BLOCK).all(axis=-1)
  whole = full & (newest <= earliest)
  whole &= (low == high) & (least == largest) & (low == least)
  if own:
    # Slots are in the order of positions, so no query sees a later slot.
    needed &= jnp.tri(needed.shape[1], dtype=bool)
  if window is not None:
    # A sum, not a difference: in blocks of padding alone, where `newest` and
    # `earliest` are the extremes of int32, a difference overflows.
    needed &= newest + window > earliest
    whole &= oldest + window > latest
  first, last = _span(needed)
  begin, end = _run(needed & whole)
  inside = begin < end
  from_row, to_row = _span(needed.swapaxes(1, 2))
  return Part(
    segments=segments,
    slots=slots,
    numbers=numbers,
    first=first,
    begin=jnp.where(inside, begin, first),
    end=jnp.where(inside, end, first),
    last=last,
    from_row=from_row,
    to_row=to_row,
  )


def _whole_blocks(x: Int[Array, 'B T'], fill: int) -> Int[Array, 'B U']:
  return layers.pad(x, 1, fill, size=-x.shape[1] % BLOCK)


def _ranges(
  x: Int[Array, 'B T'], there: Bool[Array, 'B T'], axis: int
) -> tuple[Array, Array]:
  """Least and largest of each block without padding, with one more axis."""
  info = jnp.iinfo(jnp.int32)
  x, there = (y.reshape(len(y), -1, BLOCK) for y in (x, there))
  least = jnp.where(there, x, info.max).min(axis=-1)
  largest = jnp.where(there, x, info.min).max(axis=-1)
  return jnp.expand_dims(least, axis), jnp.expand_dims(largest, axis)


def _span(
  some: Bool[Array, 'B I J'],
) -> tuple[Int[Array, 'B I'], Int[Array, 'B I']]:
  """Indices of the first true element and behind the last one; 0 if none."""
  first = jnp.argmax(some, axis=-1)
  end = some.shape[-1] - jnp.argmax(some[..., ::-1], axis=-1)
  there = some.any(axis=-1)
  first, end = (jnp.where(there, x, 0) for x in (first, end))
  return first.astype(jnp.int32), end.astype(jnp.int32)


def _run(
  some: Bool[Array, 'B I J'],
) -> tuple[Int[Array, 'B I'], Int[Array, 'B I']]:
  """As `_span`, but ends at the first gap."""
  first, last = _span(some)
  number = jnp.arange(some.shape[-1])
  gap = ~some & (number >= first[..., None]) & (number < last[..., None])
  end = jnp.where(gap.any(axis=-1), jnp.argmax(gap, axis=-1), last)
  return first, end.astype(jnp.int32)


def seen_by(masks: Masks, part: Part, i: Array, j: Array) -> Array:
  """Mask of the keys of block j that the queries of block i see."""
  rows, slots = pl.ds(i * BLOCK, BLOCK), pl.ds(j * BLOCK, BLOCK)
  position, place = masks.positions[rows][:, None], part.slots[slots][None, :]
  seen = (place >= 0) & (place <= position)
  seen &= part.segments[rows][:, None] == part.numbers[slots][None, :]
  if masks.window is not None:
    seen &= place > position - masks.window[0]
  return seen
