"""Attention of passages over one another by a Pallas kernel for GPUs."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vtokens.models import layers
from vtokens.models.kv_cache import KVCache
from vtokens.partitioning import LOGICAL_AXIS_RULES, platform

_BATCH = PartitionSpec(LOGICAL_AXIS_RULES['batch'])
_QUERIES = PartitionSpec(*_BATCH, None, LOGICAL_AXIS_RULES['heads'], None)
_KEYS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None, None)
# Fewer tokens are left to the matrix products of `attention.attend`.
_SHORTEST = 128
# What the kernel was compiled for.
_CARDS = ('NVIDIA A100', 'NVIDIA H100', 'NVIDIA H200')
# Queries of a block times their width, of 16 bits: with two stages of keys and
# values of half as many tokens, 96 KiB; on A100 a block can have 163.
_BLOCK_SIZE = 2**14
_LARGEST_BLOCK = 128
_STAGES = 2
_LOWEST = float(jnp.finfo(jnp.float32).min)


def is_for(
  mesh: Mesh, q: Float[Array, 'B T N H'], caches: Sequence[KVCache]
) -> bool:
  """Whether the kernel can and should be used.

  On GPUs with units for products in bfloat16, in 16 bits, for tokens that see
  only one another, and not too few of them.

  Args:
    mesh: the devices.
    q: see `attend`.
    caches: what precedes the tokens.
  """
  return (
    platform(mesh) == 'gpu'
    and mesh.devices.flat[0].device_kind.startswith(_CARDS)
    and not caches
    and q.shape[1] >= _SHORTEST
    and q.dtype in (jnp.bfloat16, jnp.float16)
  )


def attend(
  q: Float[Array, 'B T N H'],
  new: KVCache,
  mesh: Mesh,
  *,
  scale: float,
  softcap: float | None = None,
  window: Int[Array, ''] | int | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """`attention.attend` without caches, forward only.

  FlashAttention-2 (arXiv 2307.08691, algorithm 1): a block of queries goes over
  the blocks of keys that its segments have, and no score is written to memory.

  Args:
    q: rotated queries.
    new: keys, values and positions of the same tokens; see `attention.attend`.
      In each segment of a row, slots are in the order of positions.
    mesh: the devices; rows lie over batch, heads over heads.
    scale: multiplies the scores.
    softcap: see `layers.softcap`; of the scores.
    window: how many positions a query sees, its own included; None for all.
    interpret: run the kernel on another device, slowly.

  Returns:
    Attended values in q's dtype. Rows whose position is -1 hold garbage, which
    is finite.
  """
  length = q.shape[1]
  padding = -length % _blocks(q.shape[-1])[0]
  segments = new.segments
  if segments is None:
    segments = jnp.zeros_like(new.positions)

  pad = functools.partial(layers.pad, size=padding)
  run = jax.shard_map(
    functools.partial(
      _one_shard, scale=scale, softcap=softcap, interpret=interpret
    ),
    mesh=mesh,
    in_specs=(_QUERIES, _KEYS, _KEYS, _BATCH, _BATCH, PartitionSpec()),
    out_specs=_QUERIES,
    check_vma=False,
  )
  out = run(
    pad(q, 1),
    pad(new.k, 3),
    pad(new.v, 2),
    pad(new.positions, 1, -1),
    pad(segments, 1),
    None if window is None else jnp.reshape(jnp.int32(window), 1),
  )
  return out[:, :length]


def _blocks(head_dim: int) -> tuple[int, int]:
  """Queries and keys of a block."""
  queries = min(_LARGEST_BLOCK, _BLOCK_SIZE // pl.next_power_of_2(head_dim))
  return queries, queries // 2


def _one_shard(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K H T'],
  v: Float[Array, 'B K T H'],
  positions: Int[Array, 'B T'],
  segments: Int[Array, 'B T'],
  window: Int[Array, '1'] | None,
  *,
  scale: float,
  softcap: float | None,
  interpret: bool,
) -> Float[Array, 'B T N H']:
  # It needs parts of JAX that not every platform's build has.
  from jax.experimental.pallas import triton

  b, length, n, h = q.shape
  groups = n // k.shape[1]
  queries, keys = _blocks(h)
  # Blocks have sizes of powers of two; what is beyond is masked.
  width = pl.next_power_of_2(h)
  first, last = _bounds(positions, segments, window, queries, keys)

  def per_row(size: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, size), lambda i, b, n: (b, 0))

  operands = [q, k, v, positions, segments, first, last]
  specs = [
    pl.BlockSpec((None, queries, None, width), lambda i, b, n: (b, i, n, 0)),
    pl.BlockSpec(
      (None, None, width, length), lambda i, b, n: (b, n // groups, 0, 0)
    ),
    pl.BlockSpec(
      (None, None, length, width), lambda i, b, n: (b, n // groups, 0, 0)
    ),
    per_row(length),
    per_row(length),
    per_row(length // queries),
    per_row(length // queries),
  ]
  if window is not None:
    operands.append(window)
    specs.append(pl.BlockSpec((1,), lambda i, b, n: (0,)))
  return pl.pallas_call(
    functools.partial(
      _kernel,
      triton=triton,
      head_dim=h,
      keys=keys,
      scale=scale,
      softcap=softcap,
    ),
    grid=(length // queries, b, n),
    in_specs=specs,
    out_specs=specs[0],
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=triton.CompilerParams(
      num_warps=4 if width <= 64 else 8, num_stages=_STAGES
    ),
    interpret=interpret,
    name='attend_passages',
  )(*operands)


def _bounds(
  positions: Int[Array, 'B T'],
  segments: Int[Array, 'B T'],
  window: Int[Array, '1'] | None,
  queries: int,
  keys: int,
) -> tuple[Int[Array, 'B I'], Int[Array, 'B I']]:
  """The first block of keys that each block of queries needs, and the end.

  The end is one past the last; both are 0 where none is needed.
  """
  there = positions >= 0

  def ranges(x: Int[Array, 'B T'], size: int) -> tuple[Array, Array]:
    """Least and largest of each block, padding apart."""
    info = jnp.iinfo(jnp.int32)
    x, real = (y.reshape(y.shape[0], -1, size) for y in (x, there))
    return (
      jnp.where(real, x, info.max).min(axis=-1),
      jnp.where(real, x, info.min).max(axis=-1),
    )

  def of_queries(x):
    return [y[:, :, None] for y in ranges(x, queries)]

  def of_keys(x):
    return [y[:, None, :] for y in ranges(x, keys)]

  low, high = of_queries(segments)
  least, largest = of_keys(segments)
  needed: Bool[Array, 'B I J'] = (least <= high) & (low <= largest)
  blocks = needed.shape[-1]
  # Slots are in the order of positions, so that later ones are not seen.
  ends = queries * jnp.arange(1, needed.shape[1] + 1)
  needed &= keys * jnp.arange(blocks) < ends[:, None]
  if window is not None:
    earliest, _ = of_queries(positions)
    _, newest = of_keys(positions)
    # No difference: that of extremes, where all is padding, overflows.
    needed &= newest + window > earliest
  first = jnp.argmax(needed, axis=-1)
  last = blocks - jnp.argmax(needed[..., ::-1], axis=-1)
  some = needed.any(axis=-1)
  return (
    jnp.where(some, first, 0).astype(jnp.int32),
    jnp.where(some, last, 0).astype(jnp.int32),
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  positions_ref,
  segments_ref,
  first_ref,
  last_ref,
  *refs,
  triton: Any,
  head_dim: int,
  keys: int,
  scale: float,
  softcap: float | None,
) -> None:
  """Attends one block of queries of one head."""
  *window_ref, out_ref = refs
  queries, width = q_ref.shape
  block = pl.program_id(0)
  inside = jnp.arange(width) < head_dim
  q = triton.load(q_ref, mask=inside[None, :], other=0.0)
  own = pl.ds(block * queries, queries)
  positions, segments = positions_ref[own], segments_ref[own]

  def add(j, carry):
    total, largest, attended = carry
    slots = pl.ds(j * keys, keys)
    k = triton.load(k_ref.at[:, slots], mask=inside[:, None], other=0.0)
    scores = layers.softcap(triton.dot(q, k) * scale, softcap)
    there, numbers = positions_ref[slots], segments_ref[slots]
    seen = (there >= 0)[None, :] & (there[None, :] <= positions[:, None])
    seen &= numbers[None, :] == segments[:, None]
    if window_ref:
      seen &= there[None, :] > positions[:, None] - window_ref[0][0]
    # Powers of two are what the hardware has.
    scores = jnp.where(seen, scores * math.log2(math.e), _LOWEST)
    # A query that has seen no key yet adds up garbage, until scores so much
    # larger come that it is multiplied by 0.
    new = jnp.maximum(largest, scores.max(axis=1))
    weights = jnp.exp2(scores - new[:, None])
    shrink = jnp.exp2(largest - new)
    v = triton.load(v_ref.at[slots, :], mask=inside[None, :], other=0.0)
    return (
      total * shrink + weights.sum(axis=1),
      new,
      attended * shrink[:, None] + triton.dot(weights.astype(v.dtype), v),
    )

  total, _, attended = jax.lax.fori_loop(
    first_ref[block],
    last_ref[block],
    add,
    (
      jnp.zeros(queries, jnp.float32),
      jnp.full(queries, _LOWEST, jnp.float32),
      jnp.zeros((queries, width), jnp.float32),
    ),
  )
  # Blocks of padding alone have none.
  attended /= jnp.where(total > 0, total, 1.0)[:, None]
  triton.store(out_ref, attended.astype(out_ref.dtype), mask=inside[None, :])
