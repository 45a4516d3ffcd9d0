"""Attention among passages by JAX's Pallas kernel for TPUs."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vtokens.devices.partitioning import (
  LOGICAL_AXIS_RULES,
  is_divisible,
  platform,
)
from vtokens.models import layers
from vtokens.models.kv_cache import KVCache

_BATCH = PartitionSpec(LOGICAL_AXIS_RULES['batch'])
_HEADS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None, None)
_SINKS = PartitionSpec(LOGICAL_AXIS_RULES['heads'])
# The kernel's blocks are multiples of a vector register's lanes.
LANES = 128
_LARGEST_BLOCK = 512


def obstacle(mesh: Mesh, *, varies: bool) -> str:
  """Why the kernel cannot be used, whatever the batch; '' if it can.

  Args:
    mesh: the devices.
    varies: whether the window differs between the layers of one scan. It must
      be known when the kernel is compiled.
  """
  if platform(mesh) != 'tpu':
    return 'there is no TPU'
  if varies:
    return (
      'windows differ between the layers of a loop; '
      'config.base.scan_layers=False compiles each layer by itself'
    )
  return ''


def is_for(
  mesh: Mesh,
  rows: int,
  length: int,
  caches: Sequence[KVCache],
  window: int | Array | None,
) -> bool:
  """Whether the kernel can and should be used.

  Besides what `obstacle` says it needs rows that divide evenly over the
  devices, enough tokens, and no caches.

  Args:
    mesh: the devices.
    rows: number of rows.
    length: tokens per row.
    caches: caches of earlier tokens.
    window: see `attend`.
  """
  return (
    not obstacle(mesh, varies=not isinstance(window, int | None))
    and is_divisible(mesh, 'batch', rows)
    and not caches
    and length >= LANES
  )


def attend(
  q: Float[Array, 'B T N H'],
  new: KVCache,
  mesh: Mesh,
  *,
  scale: float,
  softcap: float | None = None,
  window: int | None = None,
  sinks: Float[Array, 'N'] | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """`attention.attend` without caches, forward only.

  Fully masked blocks of scores are not computed. No score is written to memory.

  Args:
    q: rotated queries.
    new: keys, values and positions of the same tokens; see `attention.attend`.
      In each segment of a row, slots are in the order of positions.
    mesh: the devices; rows are sharded over batch, heads over heads.
    scale: multiplies the scores.
    softcap: bound of the scores; see `layers.softcap`.
    window: how many tokens a query sees, itself included; None for all.
    sinks: see `attention.attend`.
    interpret: run the kernel on another device, slowly.

  Returns:
    Attended values in q's dtype. Rows whose position is -1 hold garbage.
  """
  length = q.shape[1]
  padding = -length % LANES
  segments = new.segments
  if segments is None:
    segments = jnp.zeros_like(new.positions)
  # Padding gets a separate segment, -1.
  segments = jnp.where(new.positions < 0, -1, segments)

  pad = functools.partial(layers.pad, size=padding)
  run = jax.shard_map(
    functools.partial(
      _one_shard, softcap=softcap, window=window, interpret=interpret
    ),
    mesh=mesh,
    in_specs=(_HEADS, _HEADS, _HEADS, _BATCH, _SINKS),
    out_specs=_HEADS,
    check_vma=False,
  )
  out = run(
    pad((q * scale).swapaxes(1, 2), 2),
    pad(new.k.swapaxes(2, 3), 2),
    pad(new.v, 2),
    pad(segments, 1, -1),
    sinks,
  )
  return out[:, :, :length].swapaxes(1, 2)


def _one_shard(
  q: Float[Array, 'B N T H'],
  k: Float[Array, 'B K T H'],
  v: Float[Array, 'B K T H'],
  segments: Int[Array, 'B T'],
  sinks: Float[Array, 'N'] | None,
  *,
  softcap: float | None,
  window: int | None,
  interpret: bool,
) -> Float[Array, 'B N T H']:
  heads, length = q.shape[1:3]
  shape = (length, length)
  mask: splash_attention.Mask
  if window is None:
    mask = splash_attention.CausalMask(shape)
  else:
    mask = splash_attention.LocalMask(shape, (window - 1, 0), 0)
  block = max(
    size
    for size in range(LANES, _LARGEST_BLOCK + 1, LANES)
    if length % size == 0
  )
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(block_q=block, block_kv=block),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )
  ids = splash_attention.SegmentIds(segments, segments)
  # In other dtypes than float32 the kernel does not compile with a precision
  # that the caller's process may have raised.
  exact = q.dtype == jnp.float32
  with jax.default_matmul_precision('highest' if exact else 'default'):
    out: Array = jax.vmap(kernel, (0, 0, 0, 0, None))(q, k, v, ids, sinks)
  return out
