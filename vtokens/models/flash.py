"""Attention over caches and new tokens: Pallas kernels for GPUs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vtokens.models import layers
from vtokens.models.kv_cache import KVCache
from vtokens.partitioning import LOGICAL_AXIS_RULES, platform

_BATCH = PartitionSpec(LOGICAL_AXIS_RULES['batch'])
_QUERIES = PartitionSpec(*_BATCH, None, LOGICAL_AXIS_RULES['heads'], None)
_KEYS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None, None)
_SUMS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None)
# Fewer new tokens are left to the matrix products of `attention.attend`.
_FEWEST = 32
# What the kernels were compiled for.
_CARDS = ('NVIDIA A100', 'NVIDIA H100', 'NVIDIA H200')
_LOWEST = float(jnp.finfo(jnp.float32).min)
_LOG2_E = math.log2(math.e)


def is_for(mesh: Mesh, length: int, dtype: jnp.dtype) -> bool:
  """Whether the kernels can and should be used.

  On GPUs with units for products in bfloat16, in 16 bits, for new tokens that
  are not too few.

  Args:
    mesh: the devices.
    length: new tokens of a row.
    dtype: of queries and keys.
  """
  return (
    platform(mesh) == 'gpu'
    and mesh.devices.flat[0].device_kind.startswith(_CARDS)
    and length >= _FEWEST
    and dtype in (jnp.bfloat16, jnp.float16)
  )


def attend(
  q: Float[Array, 'B T N H'],
  new: KVCache,
  caches: Sequence[KVCache],
  mesh: Mesh,
  *,
  scale: float,
  softcap: float | None = None,
  window: Int[Array, ''] | int | None = None,
  parents: Int[Array, 'B T'] | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """`attention.attend`, of which nothing flows back into the caches.

  FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2): a block of queries
  goes over the blocks of keys that its segments have, first those of the caches
  and then the new ones, and no score is written to memory. Gradients are those
  of q and of the new keys and values; the caches are of a frozen prefix, and
  their own are zeros.

  Args:
    q: rotated queries.
    new: keys, values and positions of the same tokens; see `attention.attend`.
      In each segment of a row, slots are in the order of positions.
    caches: what came before them; see `attention.attend`.
    mesh: the devices; rows lie over batch, heads over heads.
    scale: multiplies the scores.
    softcap: see `layers.softcap`; of the scores.
    window: how many positions a query sees, its own included; None for all.
    parents: see `attention.attend`.
    interpret: run the kernels on another device, slowly.

  Returns:
    Attended values in q's dtype. Rows whose position is -1 hold garbage, which
    is finite.
  """
  context = _Context(
    positions=new.positions,
    segments=new.segments,
    caches=tuple(caches),
    parents=new.segments if parents is None else parents,
    window=None if window is None else jnp.reshape(jnp.int32(window), 1),
  )
  settings = _Settings(mesh, scale, softcap, interpret)
  return _attend(settings, q, new.k, new.v, context)


@dataclasses.dataclass(frozen=True)
class _Settings:
  """What is known of a call when it is compiled; see `attend`."""

  mesh: Mesh
  scale: float
  softcap: float | None
  interpret: bool


@struct.dataclass
class _Context:
  """What nothing flows back into.

  Attributes:
    positions: of the new tokens, `B T` int32.
    segments: of the new tokens, `B T` int32; see `KVCache`.
    caches: see `attend`.
    parents: segments of the caches, `B T` int32; see `attend`.
    window: see `attend`; `1` int32.
  """

  positions: Int[Array, 'B T']
  segments: Int[Array, 'B T'] | None
  caches: tuple[KVCache, ...]
  parents: Int[Array, 'B T'] | None
  window: Int[Array, '1'] | None

  def specs(self) -> '_Context':
    """How each lies over the mesh."""
    by_rank = {1: PartitionSpec(), 2: _BATCH, 4: _KEYS}
    return jax.tree.map(lambda x: by_rank[x.ndim], self)

  def masks(self, new: KVCache) -> '_Masks':
    """Which keys of all parts are seen."""
    return _Masks(
      positions=_whole_blocks(self.positions, -1),
      parts=(
        *(
          _make_part(new, self.parents, cache, self.window, own=False)
          for cache in self.caches
        ),
        _make_part(new, self.segments, new, self.window, own=True),
      ),
      window=self.window,
    )

  def parts(self, new: KVCache) -> tuple['Keys', ...]:
    """Keys and values of all parts."""
    return tuple({'k': x.k, 'v': x.v} for x in (*self.caches, new))


# Queries or keys of a block: units for products take 64 rows at a time on
# Hopper, and few blocks have queries of several segments.
_BLOCK = 64
_WARPS = 4
# Blocks of keys and values that are under way, forward and backward, and bytes
# for them: a program can have 163 KiB on A100, 227 on H100, of which blocks of
# queries take a quarter to a half as many.
_STAGES, _STAGES_BACKWARD = 3, 2
_STAGED, _STAGED_BACKWARD = 2**17, 2**16


@struct.dataclass
class _Part:
  """Which keys of one part a query sees, of rows or, in a kernel, of one row.

  Attributes:
    segments: which of the part's segments each query sees, `B T` int32, of
      whole blocks.
    slots: positions of the keys, `B S` int32, of whole blocks; -1 for padding.
    numbers: segments of the keys, `B S` int32.
    first: the first block of keys that each block of queries needs, `B I`
      int32.
    begin: the first of those of which all its queries see all keys, so that
      nothing is to be masked, `B I` int32.
    end: of these, `B I` int32.
    last: of those that it needs, the end, `B I` int32. All four are the same
      where it needs none.
    earliest: the first block of queries that needs each block of keys, `B J`
      int32.
    latest: the end of these, `B J` int32.
  """

  segments: Int[Array, 'B T']
  slots: Int[Array, 'B S']
  numbers: Int[Array, 'B S']
  first: Int[Array, 'B I']
  begin: Int[Array, 'B I']
  end: Int[Array, 'B I']
  last: Int[Array, 'B I']
  earliest: Int[Array, 'B J']
  latest: Int[Array, 'B J']


@struct.dataclass
class _Masks:
  """Which keys a query sees, of rows or, in a kernel, of one.

  Attributes:
    positions: of the queries, `B T` int32, of whole blocks; -1 for padding.
    parts: the keys: of each cache, and of the new tokens.
    window: see `attend`; `1` int32.
  """

  positions: Int[Array, 'B T']
  parts: tuple[_Part, ...]
  window: Int[Array, '1'] | None


def _make_part(
  new: KVCache,
  segments: Int[Array, 'B T'] | None,
  keys: KVCache,
  window: Int[Array, '1'] | None,
  *,
  own: bool,
) -> _Part:
  """One part of the keys.

  Args:
    new: the tokens that attend.
    segments: which of the keys' segments each of them sees.
    keys: the part.
    window: see `attend`.
    own: whether the keys are those of the same tokens.
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
  full = (slots >= 0).reshape(len(slots), 1, -1, _BLOCK).all(axis=-1)
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
  return _Part(
    segments,
    slots,
    numbers,
    first,
    jnp.where(inside, begin, first),
    jnp.where(inside, end, first),
    last,
    *_span(needed.swapaxes(1, 2)),
  )


def _whole_blocks(x: Int[Array, 'B T'], fill: int) -> Int[Array, 'B U']:
  return layers.pad(x, 1, fill, size=-x.shape[1] % _BLOCK)


def _ranges(
  x: Int[Array, 'B T'], there: Bool[Array, 'B T'], axis: int
) -> tuple[Array, Array]:
  """Least and largest of each block, padding apart, with an axis more."""
  info = jnp.iinfo(jnp.int32)
  x, there = (y.reshape(len(y), -1, _BLOCK) for y in (x, there))
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


Keys = Mapping[str, Any]


# Of the whole over the mesh, so that no `shard_map` has to be differentiated.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, context):
  out, _ = _forward(settings, q, k, v, context)
  return out


def _keep(settings, q, k, v, context):
  out, sums = _forward(settings, q, k, v, context)
  return out, (q, k, v, context, out, sums)


def _pull_back(settings, kept, gradient):
  q, k, v, context, out, sums = kept
  gradients = _backward(settings, q, k, v, context, out, sums, gradient)
  return *gradients, None


_attend.defvjp(_keep, _pull_back)


def _forward(settings, q, k, v, context):
  """Attended values, and logarithms of the sums that they were divided by."""

  def shard(q, k, v, context):
    b, t, n, _ = q.shape
    new = KVCache(k, v, context.positions, context.segments)
    return _call(
      _forward_kernel,
      settings,
      {'q': q},
      {},
      context.parts(new),
      context.masks(new),
      (
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct((b, n, t), jnp.float32),
      ),
      _stages(_STAGES, _STAGED, q),
    )

  return jax.shard_map(
    shard,
    mesh=settings.mesh,
    in_specs=(_QUERIES, _KEYS, _KEYS, context.specs()),
    out_specs=(_QUERIES, _SUMS),
    check_vma=False,
  )(q, k, v, context)


def _backward(settings, q, k, v, context, out, sums, gradient):
  """The gradients of queries, keys and values, from that of `out`."""

  def shard(q, k, v, context, out, sums, gradient):
    # D of algorithm 2.
    taken = jnp.einsum(
      'btnh,btnh->bnt', gradient, out, preferred_element_type=jnp.float32
    )
    wide = {'q': q, 'gradient': gradient}
    narrow = {'sums': sums, 'taken': taken}
    new = KVCache(k, v, context.positions, context.segments)
    masks = context.masks(new)
    of_q = _call(
      _queries_kernel,
      settings,
      wide,
      narrow,
      context.parts(new),
      masks,
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      _stages(_STAGES_BACKWARD, _STAGED_BACKWARD, q),
    )
    of_new = _call_of_keys(settings, wide, narrow, {'k': k, 'v': v}, masks)
    return of_q, of_new['k'], of_new['v']

  return jax.shard_map(
    shard,
    mesh=settings.mesh,
    in_specs=(
      *(_QUERIES, _KEYS, _KEYS, context.specs()),
      *(_QUERIES, _SUMS, _QUERIES),
    ),
    out_specs=(_QUERIES, _KEYS, _KEYS),
    check_vma=False,
  )(q, k, v, context, out, sums, gradient)


def _stages(most: int, size: int, q: Float[Array, 'B T N H']) -> int:
  """How many blocks of keys and values of 16 bits fit, if any more than one."""
  block = 2 * _BLOCK * pl.next_power_of_2(q.shape[-1]) * q.dtype.itemsize
  return max(1, min(most, size // block))


def _call(
  kernel: Callable[..., None],
  settings: _Settings,
  wide: Mapping[str, Float[Array, 'B T N H']],
  narrow: Mapping[str, Float[Array, 'B N T']],
  parts: tuple[Keys, ...],
  masks: _Masks,
  results: Any,
  stages: int,
) -> Any:
  """Runs a program for each block of queries of each head of each row.

  Args:
    kernel: the program.
    settings: of it.
    wide: arrays like the queries, these among them.
    narrow: those of one number for each query and head.
    parts: keys and values.
    masks: which are seen.
    results: shapes, like wide or narrow arrays.
    stages: blocks of keys under way.
  """
  b, length, n, h = wide['q'].shape
  groups = n // parts[0]['k'].shape[1]
  # Blocks have sizes of powers of two; what is beyond is masked.
  width = pl.next_power_of_2(h)

  def like_queries(x):
    if len(x.shape) == 4:
      return pl.BlockSpec(
        (None, _BLOCK, None, width), lambda i, b, n: (b, i, n, 0)
      )
    return pl.BlockSpec((None, None, _BLOCK), lambda i, b, n: (b, n, i))

  def of_keys(part):
    slots = part['k'].shape[-1]

    def of_head(*shape):
      return pl.BlockSpec(
        (None, None, *shape), lambda i, b, n: (b, n // groups, 0, 0)
      )

    return {'k': of_head(width, slots), 'v': of_head(slots, width)}

  return _pallas_call(
    kernel,
    settings,
    _Sizes(length, h),
    (pl.cdiv(length, _BLOCK), b, n),
    (wide, narrow, parts, masks),
    (
      jax.tree.map(like_queries, wide),
      jax.tree.map(like_queries, narrow),
      tuple(map(of_keys, parts)),
      _mask_specs(masks),
    ),
    results,
    jax.tree.map(like_queries, results),
    stages,
  )


def _call_of_keys(
  settings: _Settings,
  wide: Mapping[str, Float[Array, 'B T N H']],
  narrow: Mapping[str, Float[Array, 'B N T']],
  new: Keys,
  masks: _Masks,
) -> Keys:
  """Runs a program for each block of new keys of each of their heads."""
  b, length, n, h = wide['q'].shape
  heads = new['k'].shape[1]
  groups = n // heads
  width = pl.next_power_of_2(h)

  def of_group(x):
    if x.ndim == 4:
      return pl.BlockSpec(
        (None, length, groups, width), lambda j, b, n: (b, 0, n, 0)
      )
    return pl.BlockSpec((None, groups, length), lambda j, b, n: (b, n, 0))

  specs = {
    'k': pl.BlockSpec(
      (None, None, width, _BLOCK), lambda j, b, n: (b, n, 0, j)
    ),
    'v': pl.BlockSpec(
      (None, None, _BLOCK, width), lambda j, b, n: (b, n, j, 0)
    ),
  }
  own = dataclasses.replace(masks, parts=masks.parts[-1:])
  return _pallas_call(
    _keys_kernel,
    settings,
    _Sizes(length, h),
    (pl.cdiv(length, _BLOCK), b, heads),
    (wide, narrow, new, own),
    (
      jax.tree.map(of_group, wide),
      jax.tree.map(of_group, narrow),
      specs,
      _mask_specs(own),
    ),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(new)),
    specs,
    _stages(_STAGES_BACKWARD, _STAGED_BACKWARD, wide['q']),
  )


def _mask_specs(masks: _Masks) -> _Masks:
  def whole(x):
    if x.ndim == 1:
      return pl.BlockSpec(x.shape, lambda i, b, n: (0,))
    return pl.BlockSpec((None, x.shape[1]), lambda i, b, n: (b, 0))

  return jax.tree.map(whole, masks)


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Queries of a row, and the width of a head; blocks can be beyond both."""

  length: int
  head_dim: int


def _pallas_call(
  kernel: Callable[..., None],
  settings: _Settings,
  sizes: _Sizes,
  grid: tuple[int, int, int],
  operands: tuple[Any, ...],
  specs: tuple[Any, ...],
  results: Any,
  result_specs: Any,
  stages: int,
) -> Any:
  # It needs parts of JAX that not every platform's build has.
  from jax.experimental.pallas import triton

  return pl.pallas_call(
    functools.partial(kernel, _Program(triton, settings, sizes)),
    grid=grid,
    in_specs=specs,
    out_specs=result_specs,
    out_shape=results,
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=stages),
    interpret=settings.interpret,
    name=f'attend{kernel.__name__}',
  )(*operands)


@dataclasses.dataclass(frozen=True)
class _Program:
  """What the kernels have in common."""

  triton: Any
  settings: _Settings
  sizes: _Sizes

  def load(self, ref: Any, *masks: Array | None) -> Array:
    """A block; 0 where a mask of one of its axes is false."""
    mask = _outer(*masks)
    other = None if mask is None else 0.0
    return self.triton.load(ref, mask=mask, other=other)

  def store(self, ref: Any, value: Array, *masks: Array | None) -> None:
    """Writes a block where the masks of its axes are true."""
    mask = _outer(*masks)
    self.triton.store(ref, value.astype(ref.dtype), mask=mask)

  def tokens(self, block: Array) -> Array | None:
    """Which of a block's tokens exist; None for all."""
    return _beyond(block, self.sizes.length)

  def width(self) -> Array | None:
    """Which elements of a block's width exist; None for all."""
    width = pl.next_power_of_2(self.sizes.head_dim)
    if width == self.sizes.head_dim:
      return None
    return jnp.arange(width) < self.sizes.head_dim

  def scores(self, q: Array, k: Array) -> Array:
    """Of queries and keys, nothing masked."""
    scores = self.triton.dot(q, k) * self.settings.scale
    return layers.softcap(scores, self.settings.softcap)

  def through_scores(self, of_scores: Array, scores: Array) -> Array:
    """The gradient of products of queries and keys; k or q is still to come."""
    cap = self.settings.softcap
    if cap is not None:
      of_scores *= 1 - jnp.square(scores / cap)
    return of_scores

  def over_keys(
    self,
    q: Array,
    parts: tuple[Keys, ...],
    masks: _Masks,
    add: Callable[..., Any],
    carry: Any,
  ) -> Any:
    """Goes over the blocks of keys that a block of queries needs.

    Args:
      q: the queries.
      parts: refs of keys and values.
      masks: refs.
      add: takes the carry, the scores, their mask or None, k and v; gives the
        carry.
      carry: what it begins with.
    """
    block = pl.program_id(0)

    def step(keys, part, masked, j, carry):
      at = pl.ds(j * _BLOCK, _BLOCK)
      there = _beyond(j, keys['v'].shape[0]) if masked else None
      k = self.load(keys['k'].at[:, at], self.width(), there)
      v = self.load(keys['v'].at[at, :], there, self.width())
      seen = _seen(masks, part, block, j) if masked else None
      return add(carry, self.scores(q, k), seen, k, v)

    for keys, part in zip(parts, masks.parts, strict=True):
      masked, whole = (
        functools.partial(step, keys, part, x) for x in (True, False)
      )
      first, begin, end, last = (
        x[block] for x in (part.first, part.begin, part.end, part.last)
      )
      carry = jax.lax.fori_loop(first, begin, masked, carry)
      carry = jax.lax.fori_loop(begin, end, whole, carry)
      carry = jax.lax.fori_loop(end, last, masked, carry)
    return carry


def _outer(*masks: Array | None) -> Array | None:
  """The mask of a block, of those of its axes; None for all."""
  if len(masks) == 1:
    return masks[0]
  rows, columns = masks
  if rows is None:
    return None if columns is None else columns[None, :]
  return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def _beyond(block: Array, length: int) -> Array | None:
  """Which elements of a block are of an axis of some length; None for all."""
  if length % _BLOCK == 0:
    return None
  return block * _BLOCK + jnp.arange(_BLOCK) < length


def _seen(masks: _Masks, part: _Part, i: Array, j: Array) -> Array:
  """Which keys of a block the queries of another see."""
  rows, slots = pl.ds(i * _BLOCK, _BLOCK), pl.ds(j * _BLOCK, _BLOCK)
  position, place = masks.positions[rows][:, None], part.slots[slots][None, :]
  seen = (place >= 0) & (place <= position)
  seen &= part.segments[rows][:, None] == part.numbers[slots][None, :]
  if masks.window is not None:
    seen &= place > position - masks.window[0]
  return seen


def _forward_kernel(program, wide, narrow, parts, masks, out_ref, sums_ref):
  """Attends a block of queries of one head (algorithm 1)."""
  del narrow
  there, inside = program.tokens(pl.program_id(0)), program.width()
  q = program.load(wide['q'], there, inside)

  def add(carry, scores, seen, k, v):
    del k
    total, largest, attended = carry
    # Powers of two are what the hardware has.
    scores = scores * _LOG2_E
    if seen is not None:
      scores = jnp.where(seen, scores, _LOWEST)
    # A query that has seen no key yet adds up garbage, until scores so much
    # larger come that it is multiplied by 0.
    new = jnp.maximum(largest, scores.max(axis=1))
    weights = jnp.exp2(scores - new[:, None])
    shrink = jnp.exp2(largest - new)
    value = program.triton.dot(weights.astype(v.dtype), v)
    return (
      total * shrink + weights.sum(axis=1),
      new,
      attended * shrink[:, None] + value,
    )

  total, largest, attended = program.over_keys(
    q,
    parts,
    masks,
    add,
    (
      jnp.zeros(_BLOCK, jnp.float32),
      jnp.full(_BLOCK, _LOWEST, jnp.float32),
      jnp.zeros(q.shape, jnp.float32),
    ),
  )
  # Blocks of padding alone have none.
  total = jnp.where(total > 0, total, 1.0)
  program.store(out_ref, attended / total[:, None], there, inside)
  # In powers of two, as they are used.
  program.store(sums_ref, largest + jnp.log2(total), there)


def _shares(scores: Array, sums: Array, seen: Array | None) -> Array:
  """Weights of a softmax with the sums that `_forward_kernel` has written."""
  shares = jnp.exp2(scores * _LOG2_E - sums[:, None])
  return shares if seen is None else jnp.where(seen, shares, 0.0)


def _queries_kernel(program, wide, narrow, parts, masks, of_q_ref):
  """The gradient of a block of queries of one head (algorithm 2)."""
  there, inside = program.tokens(pl.program_id(0)), program.width()
  q, gradient = (
    program.load(wide[x], there, inside) for x in ('q', 'gradient')
  )
  sums, taken = (program.load(narrow[x], there) for x in ('sums', 'taken'))

  def add(of_q, scores, seen, k, v):
    of_shares = program.triton.dot(gradient, v, trans_b=True)
    of_scores = _shares(scores, sums, seen) * (of_shares - taken[:, None])
    of_scores = program.through_scores(of_scores, scores).astype(k.dtype)
    return of_q + program.triton.dot(of_scores, k, trans_b=True)

  zeros = jnp.zeros(q.shape, jnp.float32)
  of_q = program.over_keys(q, parts, masks, add, zeros)
  program.store(of_q_ref, of_q * program.settings.scale, there, inside)


def _keys_kernel(program, wide, narrow, new, masks, of_new):
  """Gradients of a block of new keys and values of one head (algorithm 2)."""
  block = pl.program_id(0)
  [part] = masks.parts
  there, inside = program.tokens(block), program.width()
  k = program.load(new['k'], inside, there)
  v = program.load(new['v'], there, inside)

  def add(head, i, carry):
    of_k, of_v = carry
    rows = pl.ds(i * _BLOCK, _BLOCK)
    real = program.tokens(i)
    q, gradient = (
      program.load(wide[x].at[rows, head, :], real, inside)
      for x in ('q', 'gradient')
    )
    sums, taken = (
      program.load(narrow[x].at[head, rows], real) for x in ('sums', 'taken')
    )
    scores = program.scores(q, k)
    shares = _shares(scores, sums, _seen(masks, part, i, block))
    of_v += program.triton.dot(
      shares.astype(gradient.dtype), gradient, trans_a=True
    )
    of_shares = program.triton.dot(gradient, v, trans_b=True)
    of_scores = program.through_scores(
      shares * (of_shares - taken[:, None]), scores
    )
    of_k += program.triton.dot(q, of_scores.astype(q.dtype), trans_a=True)
    return of_k, of_v

  carry = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  earliest, latest = part.earliest[block], part.latest[block]

  def add_head(head, carry):
    return jax.lax.fori_loop(
      earliest, latest, functools.partial(add, head), carry
    )

  of_k, of_v = jax.lax.fori_loop(0, wide['q'].shape[1], add_head, carry)
  program.store(of_new['k'], of_k * program.settings.scale, inside, there)
  program.store(of_new['v'], of_v, there, inside)
