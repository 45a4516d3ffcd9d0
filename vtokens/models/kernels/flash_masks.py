"""Which keys the queries of `flash` see, block by block."""

import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int

from vtokens.models import layers
from vtokens.models.kv_cache import KVCache

# Queries or keys of a block: units for products take 64 rows at a time on
# Hopper, and few blocks have queries of several segments.
BLOCK = 64


@struct.dataclass
class Part:
  """Which keys of one part a query sees, of rows or, in a kernel, of one row.

  Attributes:
    segments: which of the part's segments each query sees, `B T` int32, of
      whole blocks.
    slots: positions of the keys, `B S` int32, of whole blocks; -1 for padding.
    numbers: segments of the keys, `B S` int32.
    first: the first block of keys that each block of queries needs, `B I`
      int32.
    begin: the first block that needs no mask, because all its keys are seen by
      all queries, `B I` int32.
    end: the end of the blocks without a mask, `B I` int32.
    last: the end of the blocks that it needs, `B I` int32. All four are the
      same where it needs none.
    from_row: the first block of queries that needs each block of keys, `B J`
      int32.
    to_row: the end of these, `B J` int32.
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
  """Which keys a query sees, of rows or, in a kernel, of one.

  Attributes:
    positions: of the queries, `B T` int32, of whole blocks; -1 for padding.
    parts: the keys: of each cache, and of the new tokens.
    window: see `attend`; `1` int32.
  """

  positions: Int[Array, 'B T']
  parts: tuple[Part, ...]
  window: Int[Array, '1'] | None


def make_masks(
  positions: Int[Array, 'B T'],
  parts: tuple[Part, ...],
  window: Int[Array, '1'] | None,
) -> Masks:
  """See `Masks`; of positions that need not be of whole blocks."""
  return Masks(_whole_blocks(positions, -1), parts, window)


def make_part(
  new: KVCache,
  segments: Int[Array, 'B T'] | None,
  keys: KVCache,
  window: Int[Array, '1'] | None,
  *,
  own: bool,
) -> Part:
  """One part of the keys.

  Args:
    new: the tokens that attend.
    segments: which of the keys' segments each of them sees.
    keys: the part.
    window: see `attend`.
    own: whether the keys belong to the same tokens.
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
    # Slots are in the order of positions, so that later ones are not seen.
    needed &= jnp.tri(needed.shape[1], dtype=bool)
  if window is not None:
    # No differences: those of extremes, where all is padding, overflow.
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
  """Least and largest of each block, padding apart, with an axis more."""
  info = jnp.iinfo(jnp.int32)
  x, there = (y.reshape(len(y), -1, BLOCK) for y in (x, there))
  least = jnp.where(there, x, info.max).min(axis=-1)
  largest = jnp.where(there, x, info.min).max(axis=-1)
  return jnp.expand_dims(least, axis), jnp.expand_dims(largest, axis)


def _span(
  some: Bool[Array, 'B I J'],
) -> tuple[Int[Array, 'B I'], Int[Array, 'B I']]:
  """The first that is true along the last axis and the end; 0 where none is."""
  first = jnp.argmax(some, axis=-1)
  end = some.shape[-1] - jnp.argmax(some[..., ::-1], axis=-1)
  there = some.any(axis=-1)
  first, end = (jnp.where(there, x, 0) for x in (first, end))
  return first.astype(jnp.int32), end.astype(jnp.int32)


def _run(
  some: Bool[Array, 'B I J'],
) -> tuple[Int[Array, 'B I'], Int[Array, 'B I']]:
  """As `_span`, but the end of those that are true without a gap."""
  first, last = _span(some)
  number = jnp.arange(some.shape[-1])
  gap = ~some & (number >= first[..., None]) & (number < last[..., None])
  end = jnp.where(gap.any(axis=-1), jnp.argmax(gap, axis=-1), last)
  return first, end.astype(jnp.int32)


def seen_by(masks: Masks, part: Part, i: Array, j: Array) -> Array:
  """Which keys of a block the queries of another see."""
  rows, slots = pl.ds(i * BLOCK, BLOCK), pl.ds(j * BLOCK, BLOCK)
  position, place = masks.positions[rows][:, None], part.slots[slots][None, :]
  seen = (place >= 0) & (place <= position)
  seen &= part.segments[rows][:, None] == part.numbers[slots][None, :]
  if masks.window is not None:
    seen &= place > position - masks.window[0]
  return seen
