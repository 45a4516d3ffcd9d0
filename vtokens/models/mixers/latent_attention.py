"""Attention whose cache is one latent vector for each token (MLA).

Multi-head latent attention (arXiv 2405.04434, section 2.1) projects a token to
a latent of a few hundred values. Each head's key and value are products with
it. Positions enter by one more key of a few values, rotated and shared by all
heads. Later tokens need the latent and that key alone.
"""

import dataclasses
import functools
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers, rope
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers import attention

# What transformers' norms of latents add to the mean square, whatever the
# config says.
_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True, repr=False)
class LatentAttention(Settings):
  """Makes latent attention; see `decoder_config.BlockPart`.

  The config's `head_dim` is the width of queries and keys, `plain` and
  `rotated` together; its `num_kv_heads` is 1, the heads of the cache.

  Attributes:
    rank: width of the latent (R).
    plain: width of the part of queries and keys that has no positions.
    rotated: width of the rotated part.
    value: width of a head's values.
    query_rank: width of the latent from which queries are made; None if they
      are made from the residual stream.
    temperature: YaRN's `mscale_all_dim`, which the config's `attention_scale`
      includes; 0 for none.
  """

  rank: int
  plain: int
  rotated: int
  value: int
  query_rank: int | None = None
  temperature: float = 0.0

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The attention of one layer."""
    return _Attention(self, config, dtype, rngs)

  @property
  def cache_widths(self) -> tuple[int, int]:
    """Widths of a cached key, which is rotated, and of a latent."""
    return self.rotated, self.rank

  def is_absorbed(self, tokens: Any, slots: Any) -> Any:
    """Whether queries are multiplied with the latents themselves.

    There are two ways to the same numbers. Either the latents of caches and
    tokens are expanded to keys and values of every head. Or the matrix that
    makes keys is absorbed by the queries, and the matrix that makes values is
    applied to the attended latents. For each head, with `made = plain + value`
    and `pairs = tokens * (tokens / 2 + slots)`, the multiplications are

        expanded:  pairs * (made + rotated)     + (tokens + slots) * rank * made
        absorbed:  pairs * (2 * rank + rotated) + tokens * rank * made

    Tokens without a cache are expanded: passages, and training unsplit. Few
    tokens after many are absorbed: questions, and steps of generation. With
    DeepSeek V3's widths and 550 slots that is up to 150 tokens. A mixed form,
    which expands the tokens and absorbs the caches, is never the cheapest.

    Args:
      tokens: number of new tokens in a row, or an array of such numbers.
      slots: slots of the caches in a row.

    Returns:
      A bool, or an array of bools.
    """
    made = self.plain + self.value
    pairs = tokens * (tokens / 2 + slots)
    return pairs * (2 * self.rank - made) < slots * self.rank * made


class _Attention(nnx.Module):
  """See `LatentAttention`."""

  def __init__(
    self,
    settings: LatentAttention,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    dim, heads, width = config.embed_dim, config.num_heads, config.head_dim
    self.settings, self.config = settings, config
    norms = dataclasses.replace(config, norm_eps=_NORM_EPS)

    def matrix(
      shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1
    ) -> nnx.Param[Array]:
      return layers.param(rngs, shape, axes, dtype, inputs=inputs)

    def norm(width: int) -> layers.RMSNorm:
      return layers.RMSNorm((width,), ('norm',), norms, dtype, rngs)

    def bias(width: int) -> nnx.Param[Array]:
      zeros = jax.nn.initializers.zeros
      return layers.param(rngs, (width,), ('norm',), dtype, zeros)

    rank = settings.query_rank
    if rank is None:
      self.q = matrix((dim, heads, width), ('embed', 'heads', 'head'))
    else:
      self.q_down = matrix((dim, rank), ('embed', 'down'))
      self.q_norm = norm(rank)
      self.q = matrix((rank, heads, width), ('latent', 'heads', 'head'))
      if config.out_bias:
        self.q_down_bias = bias(rank)
    # The latent, then the key to be rotated.
    both = settings.rank + settings.rotated
    self.kv_down = matrix((dim, both), ('embed', 'down'))
    self.kv_norm = norm(settings.rank)
    # For each head the key without positions, then the value. It is not
    # quantised: absorbed, it is multiplied from both sides. It is about one
    # hundredth of a model's weights.
    self.kv = layers.param(
      rngs,
      (settings.rank, heads, settings.plain + settings.value),
      ('latent', 'heads', 'head'),
      dtype,
      inputs=1,
      exact=True,
    )
    self.o = matrix(
      (heads, settings.value, dim), ('heads', 'head', 'embed'), inputs=2
    )
    if config.out_bias:
      self.kv_down_bias = bias(both)
      self.o_bias = bias(dim)

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    settings, config = self.settings, self.config
    q = self._queries(x, tokens)
    new = self.new_cache(x, tokens)
    caches, trained = tokens.caches, tokens.trained_caches
    slots = sum(cache.positions.shape[1] for cache in (*caches, *trained))
    scale = config.attention_scale
    attend = functools.partial(
      attention.attend,
      scale=config.head_dim**-0.5 if scale is None else scale,
      softcap=config.attention_softcap,
      window=tokens.window,
      parents=tokens.parents,
      mesh=tokens.mesh,
    )
    keys, values = jnp.split(self.kv[...], [settings.plain], axis=-1)
    if settings.is_absorbed(x.shape[1], slots):
      # One head of keys and values: see `attention_scores.masked_scores`.
      plain, rotated = jnp.split(q, [settings.plain], axis=-1)
      plain = jnp.einsum('btnh,rnh->btnr', plain, keys)
      q = jnp.concatenate([rotated, plain], axis=-1)
      out = attend(q, new, caches, trained=trained)
      out = jnp.einsum('btnr,rnh->btnh', out, values)
    else:
      out = attend(
        q,
        self._expanded(new),
        [self._expanded(cache) for cache in caches],
        trained=[self._expanded(cache) for cache in trained],
      )
    out = layers.product('btnh,nhd->btd', out, self.o)
    return out + self.o_bias[...] if config.out_bias else out, new

  def new_cache(self, x: Float[Array, 'B T D'], tokens: LayerInputs) -> KVCache:
    """Rotated keys and latents of the tokens, for later tokens."""
    both = layers.product('btd,dr->btr', x, self.kv_down)
    if self.config.out_bias:
      both = both + self.kv_down_bias[...]
    latent, k = jnp.split(both[:, :, None], [self.settings.rank], axis=-1)
    k = rope.rotate(k, tokens.angles, interleaved=self.config.interleaved)
    return KVCache(
      k.transpose(0, 2, 3, 1),
      self.kv_norm(latent).transpose(0, 2, 1, 3),
      tokens.positions,
      tokens.segments,
    )

  def _queries(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T N H']:
    """Queries: the part without positions, then the rotated part."""
    if self.settings.query_rank is not None:
      x = layers.product('btd,dr->btr', x, self.q_down)
      if self.config.out_bias:
        x = x + self.q_down_bias[...]
      x = self.q_norm(x)
    q = layers.product('btd,dnh->btnh', x, self.q)
    plain, rotated = jnp.split(q, [self.settings.plain], axis=-1)
    rotated = rope.rotate(
      rotated, tokens.angles, interleaved=self.config.interleaved
    )
    q = jnp.concatenate([plain, rotated], axis=-1)
    growth = self.config.query_growth
    if growth is None:
      return q
    return q * attention.growth(growth, tokens.positions).astype(q.dtype)

  def _expanded(self, cache: KVCache) -> KVCache:
    """Keys and values of every head."""
    made = jnp.einsum('bsr,rnh->bnsh', cache.v[:, 0], self.kv[...])
    k, v = jnp.split(made, [self.settings.plain], axis=-1)
    shape = (k.shape[0], k.shape[1], *cache.k.shape[2:])
    rotated = jnp.broadcast_to(cache.k, shape)
    return KVCache(
      jnp.concatenate([k.swapaxes(2, 3), rotated], axis=2),
      v,
      cache.positions,
      cache.segments,
    )
