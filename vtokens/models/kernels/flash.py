"""Attention over caches and new tokens: Pallas kernels for GPUs."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vtokens.devices.partitioning import (
  LOGICAL_AXIS_RULES,
  is_divisible,
  platform,
)
from vtokens.models import attention_scores
from vtokens.models.kernels import flash_calls, flash_kernels, flash_masks
from vtokens.models.kernels.flash_kernels import Settings
from vtokens.models.kv_cache import KVCache

_BATCH = PartitionSpec(LOGICAL_AXIS_RULES['batch'])
_QUERIES = PartitionSpec(*_BATCH, None, LOGICAL_AXIS_RULES['heads'], None)
_KEYS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None, None)
_SUMS = PartitionSpec(*_BATCH, LOGICAL_AXIS_RULES['heads'], None)
_SINKS = PartitionSpec(LOGICAL_AXIS_RULES['heads'])
_LOG2_E = math.log2(math.e)
# With fewer new tokens `attention.attend` uses its matrix products.
_FEWEST = 32
# A block of keys and one of values of wider heads, and the queries and their
# gradient, do not fit a multiprocessor's shared memory.
_WIDEST = 256
# GPUs that the kernels were compiled for.
_CARDS = ('NVIDIA A100', 'NVIDIA H100', 'NVIDIA H200')


def obstacle(mesh: Mesh, head_dim: int, dtype: jnp.dtype) -> str:
  """Why the kernels cannot be used, whatever the batch; '' if they can.

  Args:
    mesh: the devices.
    head_dim: width of a head.
    dtype: dtype of queries and keys.
  """
  if platform(mesh) != 'gpu':
    return 'there is no GPU'
  kind = mesh.devices.flat[0].device_kind
  if not kind.startswith(_CARDS):
    return f'the kernels were not compiled for {kind}'
  if dtype != jnp.bfloat16:
    return f'the kernels take bfloat16, and config.base.dtype is {dtype}'
  if head_dim > _WIDEST:
    return f'heads of {head_dim} are wider than {_WIDEST}'
  return ''


def is_for(
  mesh: Mesh, rows: int, length: int, head_dim: int, dtype: jnp.dtype
) -> bool:
  """Whether the kernels can and should be used.

  Besides what `obstacle` says they need rows that divide evenly over the
  devices, and enough new tokens.

  Args:
    mesh: the devices.
    rows: number of rows.
    length: new tokens per row.
    head_dim: width of a head.
    dtype: dtype of queries and keys.
  """
  return (
    not obstacle(mesh, head_dim, dtype)
    and is_divisible(mesh, 'batch', rows)
    and length >= _FEWEST
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
  trained: Sequence[KVCache] = (),
  sinks: Float[Array, 'N'] | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """`attention.attend`, with fewer gradients.

  FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2): each block of
  queries loops over the blocks of keys in its segments, first in the caches,
  then in the new tokens. No score is written to memory. Gradients flow to q
  and to the new keys and values. The caches hold a frozen prefix: `Decoder`
  stops their gradients. Sinks are weights of the frozen base and have no
  gradient either. Trained caches have few slots and get a gradient: they are
  attended with matrix products, and the two softmaxes are joined.

  Args:
    q: rotated queries.
    new: keys, values and positions of the same tokens; see `attention.attend`.
      In each segment of a row, slots are in the order of positions.
    caches: caches of earlier tokens; see `attention.attend`.
    mesh: the devices; rows are sharded over batch, heads over heads.
    scale: multiplies the scores.
    softcap: bound of the scores; see `layers.softcap`.
    window: positions that a query sees, its own included; None for all.
    parents: see `attention.attend`.
    trained: see `attention.attend`.
    sinks: see `attention.attend`.
    interpret: run the kernels on another device, slowly.

  Returns:
    Attended values in q's dtype. Rows with position -1 hold finite garbage.
  """
  context = _Context(
    positions=new.positions,
    segments=new.segments,
    caches=tuple(caches),
    parents=new.segments if parents is None else parents,
    window=None if window is None else jnp.reshape(jnp.int32(window), 1),
  )
  settings = Settings(scale, softcap, interpret)
  out: Array
  out, sums = _attend(settings, mesh, q, new.k, new.v, sinks, context)
  for cache in trained:
    scores = attention_scores.masked_scores(
      _by_key_head(q, new),
      new.positions,
      new.segments,
      cache,
      scale=scale,
      softcap=softcap,
      window=window,
    )
    out, sums = _join(out, sums, scores, cache.v)
  return out


def _by_key_head(
  q: Float[Array, 'B T N H'], new: KVCache
) -> Float[Array, 'B K T G H']:
  """Puts the queries of a key-value head beside each other."""
  b, t, n, h = q.shape
  heads = new.k.shape[1]
  return q.reshape(b, t, heads, n // heads, h).transpose(0, 2, 1, 3, 4)


def _join(
  out: Float[Array, 'B T N H'],
  sums: Float[Array, 'B N T'],
  scores: Float[Array, 'B K T G S'],
  values: Float[Array, 'B K S H'],
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']]:
  """Adds a part of the keys to a softmax over other parts.

  Args:
    out: attended values over the other parts.
    sums: base-2 logarithms of their softmax denominators.
    scores: scores over this part.
    values: values of this part.

  Returns:
    Attended values and logarithms over all parts.
  """
  b, k, t, g, _ = scores.shape
  shape = (b, k, g, t)
  before = (sums / _LOG2_E).reshape(shape).transpose(0, 1, 3, 2)[..., None]
  # It cancels out, so its gradient would, too.
  largest = jax.lax.stop_gradient(
    jnp.maximum(before, scores.max(axis=-1, keepdims=True))
  )
  weights, weight = jnp.exp(scores - largest), jnp.exp(before - largest)
  total = weight + weights.sum(axis=-1, keepdims=True)
  earlier = out.reshape(b, t, k, g, -1).transpose(0, 2, 1, 3, 4)
  added = jnp.einsum('bktgs,bksh->bktgh', weights.astype(values.dtype), values)
  joined = ((weight * earlier + added) / total).astype(out.dtype)
  logarithms = (largest + jnp.log(total))[..., 0] * _LOG2_E
  return (
    joined.transpose(0, 2, 1, 3, 4).reshape(out.shape),
    logarithms.transpose(0, 1, 3, 2).reshape(sums.shape),
  )


@struct.dataclass
class _Context:
  """The arguments without gradients.

  Attributes:
    positions: positions of the new tokens, array of shape [B, T], int32.
    segments: segments of the new tokens, array of shape [B, T], int32; see
      `KVCache`.
    caches: see `attend`.
    parents: segment of the caches that each new token continues, array of
      shape [B, T], int32; see `attend`.
    window: array of shape [1], int32; see `attend`.
  """

  positions: Int[Array, 'B T']
  segments: Int[Array, 'B T'] | None
  caches: tuple[KVCache, ...]
  parents: Int[Array, 'B T'] | None
  window: Int[Array, '1'] | None

  def specs(self) -> '_Context':
    """The sharding of each array."""
    by_rank = {1: PartitionSpec(), 2: _BATCH, 4: _KEYS}
    specs: _Context = jax.tree.map(lambda x: by_rank[x.ndim], self)
    return specs

  def parts(
    self, new: KVCache
  ) -> tuple[tuple[flash_kernels.Keys, ...], flash_masks.Masks]:
    """Keys and values of all parts, and the masks over them."""
    masks = [
      flash_masks.make_part(new, self.parents, cache, self.window, own=False)
      for cache in self.caches
    ]
    own = flash_masks.make_part(new, self.segments, new, self.window, own=True)
    return (
      tuple({'k': x.k, 'v': x.v} for x in (*self.caches, new)),
      flash_masks.make_masks(self.positions, (*masks, own), self.window),
    )


# The arguments of `_attend` with arrays, and what `_forward` returns.
_Kept = tuple[Array, Array, Array, _Context, Array, Array]


# Outside of `shard_map`, so that `shard_map` need not be differentiated.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
  settings: Settings,
  mesh: Mesh,
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K H T'],
  v: Float[Array, 'B K T H'],
  sinks: Float[Array, 'N'] | None,
  context: _Context,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']]:
  return _forward(settings, mesh, q, k, v, sinks, context)


def _keep(
  settings: Settings,
  mesh: Mesh,
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K H T'],
  v: Float[Array, 'B K T H'],
  sinks: Float[Array, 'N'] | None,
  context: _Context,
) -> tuple[tuple[Array, Array], _Kept]:
  out, sums = _forward(settings, mesh, q, k, v, sinks, context)
  return (out, sums), (q, k, v, context, out, sums)


def _pull_back(
  settings: Settings,
  mesh: Mesh,
  kept: _Kept,
  gradients: tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']],
) -> tuple[Array, Array, Array, None, None]:
  q, k, v, context, out, sums = kept

  def shard(
    q: Array, k: Array, v: Array, context: _Context, *rest: Array
  ) -> tuple[Array, Array, Array]:
    new = KVCache(k, v, context.positions, context.segments)
    of_q, of_new = flash_calls.backward(settings, q, *context.parts(new), *rest)
    return of_q, of_new['k'], of_new['v']

  of_q, of_k, of_v = jax.shard_map(
    shard,
    mesh=mesh,
    in_specs=(
      *(_QUERIES, _KEYS, _KEYS, context.specs()),
      *(_QUERIES, _SUMS, _QUERIES, _SUMS),
    ),
    out_specs=(_QUERIES, _KEYS, _KEYS),
    check_vma=False,
  )(q, k, v, context, out, sums, *gradients)
  return of_q, of_k, of_v, None, None


_attend.defvjp(_keep, _pull_back)


def _forward(
  settings: Settings,
  mesh: Mesh,
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K H T'],
  v: Float[Array, 'B K T H'],
  sinks: Float[Array, 'N'] | None,
  context: _Context,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']]:
  """See `flash_calls.forward`."""

  def shard(
    q: Array, k: Array, v: Array, sinks: Array | None, context: _Context
  ) -> tuple[Array, Array]:
    new = KVCache(k, v, context.positions, context.segments)
    return flash_calls.forward(settings, q, *context.parts(new), sinks)

  out, sums = jax.shard_map(
    shard,
    mesh=mesh,
    in_specs=(_QUERIES, _KEYS, _KEYS, _SINKS, context.specs()),
    out_specs=(_QUERIES, _SUMS),
    check_vma=False,
  )(q, k, v, sinks, context)
  return out, sums
