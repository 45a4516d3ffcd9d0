"""Causal grouped-query attention over caches and the new tokens."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.devices import partitioning
from vtokens.models import attention_scores, layers, rope
from vtokens.models.decoder_config import DecoderConfig, QueryGrowth
from vtokens.models.kernels import flash, splash
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs

# Queries attended at a time. A block's queries see no keys of later blocks, so
# those scores are not computed: with blocks of 128, 512 tokens take 5/8 of the
# work. The smaller block fits a CPU's caches.
_QUERY_BLOCK, _QUERY_BLOCK_CPU = 128, 64
# Positions, segments and parents of some tokens; see `attend`.
_Rows = tuple[
  Int[Array, 'B T'], Int[Array, 'B T'] | None, Int[Array, 'B T'] | None
]


def attend(
  q: Float[Array, 'B T N H'],
  new: KVCache,
  caches: Sequence[KVCache],
  *,
  scale: float,
  softcap: float | None = None,
  window: Int[Array, ''] | int | None = None,
  parents: Int[Array, 'B T'] | None = None,
  trained: Sequence[KVCache] = (),
  sinks: Float[Array, 'N'] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, 'B T N V']:
  """Softmax attention of new tokens over caches and one another.

  A query sees a slot if the slot has the query's segment or its cache has no
  segments, and if the slot's position is not negative, not beyond the query's
  and within the window. One softmax covers the keys of all caches and of the
  new tokens; they are not concatenated. Scores and softmax are float32.

  Args:
    q: rotated queries of the new tokens. They may be wider than the keys; see
      `attention_scores.masked_scores`.
    new: rotated keys, values and positions of the same tokens. In each segment
      of a row, positions rise from slot to slot, except for padding (-1).
    caches: caches of earlier tokens, in any number of parts. A cache without
      segments precedes every segment of `new`: several continuations share it
      as a prefix.
    scale: multiplies the scores.
    softcap: bound of the scores; see `layers.softcap`.
    window: positions that a query sees, its own included; None for all.
    parents: segment of the caches that each new token continues. It lets
      several segments of `new` continue one segment of a cache. None if each
      continues the segment of its own number.
    trained: caches whose segments are numbered as those of `new`, whatever
      the parents are.
    sinks: one more score for each head, of a value that is zero; see
      `DecoderConfig.sinks`.
    mesh: the devices, which decide how many queries are attended at a time;
      None for the default devices.

  Returns:
    Attended values in q's dtype. Rows whose position is -1 hold garbage.
  """
  scores_over = functools.partial(
    attention_scores.masked_scores,
    scale=scale,
    softcap=softcap,
    window=window,
  )

  def attend_block(
    q: Float[Array, 'B K T G H'], rows: _Rows, own: KVCache
  ) -> Float[Array, 'B K T G V']:
    positions, segments, continued = rows
    scores = [
      scores_over(q, positions, continued, cache) for cache in caches
    ] + [
      scores_over(q, positions, segments, cache) for cache in (*trained, own)
    ]
    extra = [] if sinks is None else [sink_scores]
    largest = functools.reduce(
      jnp.maximum,
      [part.max(axis=-1, keepdims=True) for part in scores] + extra,
    )
    # It cancels out, so its gradient would, too.
    largest = jax.lax.stop_gradient(largest)
    totals, values = [], []
    for part, cache in zip(scores, [*caches, *trained, own], strict=True):
      weights = jnp.exp(part - largest)
      totals.append(weights.sum(axis=-1, keepdims=True))
      values.append(
        jnp.einsum('bktgs,bksh->bktgh', weights.astype(q.dtype), cache.v)
      )
    totals += [jnp.exp(score - largest) for score in extra]
    # Dividing the sum is less work than dividing all weights.
    attended = functools.reduce(jnp.add, values)
    return (attended / functools.reduce(jnp.add, totals)).astype(q.dtype)

  b, t, n, h = q.shape
  groups = n // new.k.shape[1]
  q = q.reshape(b, t, -1, groups, h).transpose(0, 2, 1, 3, 4)

  if sinks is not None:
    sink_scores = sinks.astype(jnp.float32).reshape(1, -1, 1, groups, 1)

  def rows(start: int, stop: int) -> _Rows:
    some: _Rows = jax.tree.map(
      lambda x: x[:, start:stop],
      (
        new.positions,
        new.segments,
        new.segments if parents is None else parents,
      ),
    )
    return some

  cpu = partitioning.platform(mesh) == 'cpu'
  block = _QUERY_BLOCK_CPU if cpu else _QUERY_BLOCK
  blocks = []
  for start in range(0, t, block):
    stop = min(start + block, t)
    positions, segments, _ = rows(0, stop)
    own = KVCache(new.k[..., :stop], new.v[:, :, :stop], positions, segments)
    blocks.append(attend_block(q[:, :, start:stop], rows(start, stop), own))
  out = jnp.concatenate(blocks, axis=2)
  return out.transpose(0, 2, 1, 3, 4).reshape(b, t, n, -1)


class Attention(nnx.Module):
  """Projections, norms and rotation around `attend`."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    d, h = config.embed_dim, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    self.config = config

    def matrix(
      shape: tuple[int, ...], axes: tuple[str, ...], inputs: int
    ) -> nnx.Param[Array]:
      return layers.param(rngs, shape, axes, dtype, inputs=inputs)

    self.q = matrix((d, n, h), ('embed', 'heads', 'head'), 1)
    self.k = matrix((d, k, h), ('embed', 'kv_heads', 'head'), 1)
    self.v = matrix((d, k, h), ('embed', 'kv_heads', 'head'), 1)
    self.o = matrix((n, h, d), ('heads', 'head', 'embed'), 2)

    def bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param[Array]:
      zeros = jax.nn.initializers.zeros
      return layers.param(rngs, shape, axes, dtype, zeros)

    if config.qkv_bias:
      self.q_bias = bias((n, h), ('heads', 'head'))
      self.k_bias = bias((k, h), ('kv_heads', 'head'))
      self.v_bias = bias((k, h), ('kv_heads', 'head'))
    if config.out_bias:
      self.o_bias = bias((d,), ('embed',))

    def norm(heads: int, axis: str) -> layers.RMSNorm | layers.LayerNorm:
      one = config.qk_norm == 'head'
      shape, axes = ((h,), ('head',)) if one else ((heads, h), (axis, 'head'))
      kind = layers.LayerNorm if config.norm == 'layer' else layers.RMSNorm
      return kind(shape, axes, config, dtype, rngs)

    if config.output_gate:
      self.gate = matrix((d, n, h), ('embed', 'heads', 'head'), 1)
      if config.qkv_bias:
        self.gate_bias = bias((n, h), ('heads', 'head'))
    if config.sinks:
      self.sinks = bias((n,), ('heads',))
    self.has_norms = config.qk_norm != 'none'
    if self.has_norms:
      self.q_norm = norm(n, 'heads')
      self.k_norm = norm(k, 'kv_heads')

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    tokens: LayerInputs,
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    config, caches = self.config, tokens.caches
    q = layers.product('btd,dnh->btnh', x, self.q)
    if config.qkv_bias:
      q = q + self.q_bias[...]
    q = self._clipped(q)
    q = self._turned(q, self.q_norm if self.has_norms else None, tokens)
    if config.query_growth is not None:
      q = q * growth(config.query_growth, tokens.positions).astype(q.dtype)
    new = self.new_cache(x, tokens)
    scale = config.attention_scale
    if scale is None:
      scale = (config.query_scalar or config.head_dim) ** -0.5
    settings: dict[str, Any] = {
      'scale': scale,
      'softcap': config.attention_softcap,
      'window': tokens.window,
      'sinks': self.sinks[...] if config.sinks else None,
    }
    rows, length, _ = x.shape
    over = tokens.mesh if config.kernels else None
    trained = tokens.trained_caches
    if (
      over
      and not trained
      and splash.is_for(over, rows, length, caches, tokens.window)
    ):
      out = splash.attend(q, new, over, **settings)
    elif over and flash.is_for(over, rows, length, q.shape[-1], x.dtype):
      settings |= {'parents': tokens.parents, 'trained': trained}
      out = flash.attend(q, new, caches, over, **settings)
    else:
      settings |= {'parents': tokens.parents, 'trained': trained}
      out = attend(q, new, caches, **settings, mesh=tokens.mesh)
    if config.output_gate:
      gate = layers.product('btd,dnh->btnh', x, self.gate)
      if config.qkv_bias:
        gate = gate + self.gate_bias[...]
      out = out * jax.nn.sigmoid(gate)
    out = layers.product('btnh,nhd->btd', out, self.o)
    return out + self.o_bias[...] if config.out_bias else out, new

  def new_cache(self, x: Float[Array, 'B T D'], tokens: LayerInputs) -> KVCache:
    """Keys and values of the tokens, for later tokens."""
    k = layers.product('btd,dkh->btkh', x, self.k)
    v = layers.product('btd,dkh->btkh', x, self.v)
    if self.config.qkv_bias:
      k, v = k + self.k_bias[...], v + self.v_bias[...]
    k, v = self._clipped(k), self._clipped(v)
    k = self._turned(k, self.k_norm if self.has_norms else None, tokens)
    return KVCache(
      k.transpose(0, 2, 3, 1),
      v.transpose(0, 2, 1, 3),
      tokens.positions,
      tokens.segments,
    )

  def _clipped(self, x: Float[Array, 'B T N H']) -> Float[Array, 'B T N H']:
    bound = self.config.clip_qkv
    return x if bound is None else jnp.clip(x, -bound, bound)

  def _turned(
    self,
    x: Float[Array, 'B T N H'],
    norm: Callable[[Array], Array] | None,
    tokens: LayerInputs,
  ) -> Float[Array, 'B T N H']:
    """Queries or keys, normed and rotated."""
    last = self.config.qk_norm_last
    if norm is not None and not last:
      x = norm(x)
    interleaved = self.config.interleaved
    x = rope.rotate(x, tokens.angles, interleaved=interleaved)
    return norm(x) if norm is not None and last else x


def growth(
  rule: QueryGrowth, positions: Int[Array, 'B T']
) -> Float[Array, 'B T 1 1']:
  """Factors of the queries at some positions, float32."""
  # Padding has the position -1.
  turns = jnp.maximum(positions, 0) // rule.length
  factors = 1 + rule.beta * jnp.log1p(turns.astype(jnp.float32))
  return factors[..., None, None]
