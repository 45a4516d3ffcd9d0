"""Attention of Gemma 3n and 4.

Heads of a layer have their own number and width. Values may be made from keys,
and keys and values may be an earlier layer's.
"""

import dataclasses
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.cache import Nothing
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers.attention import Attention


@dataclasses.dataclass(frozen=True, repr=False)
class Heads(Settings):
  """Makes a layer's attention; see `decoder_config.BlockPart`.

  Values are normed, without a scale.

  Attributes:
    head_dim: width of a head (H).
    num_kv_heads: heads of keys and values (K).
    values_are_keys: whether values are the keys before their norm and rotation.
    source: number of the earlier layer whose keys and values the layer reads;
      None if it has its own.
  """

  head_dim: int
  num_kv_heads: int
  values_are_keys: bool = False
  source: int | None = None

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The attention of one layer."""
    own = dataclasses.replace(
      config, head_dim=self.head_dim, num_kv_heads=self.num_kv_heads
    )
    return _Attention(self, own, dtype, rngs)


class _Attention(Attention):
  def __init__(
    self,
    settings: Heads,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    super().__init__(config, dtype, rngs)
    self.settings = settings
    unused = []
    if settings.source is not None:
      unused = ['k', 'v', 'k_bias', 'v_bias', 'k_norm']
    elif settings.values_are_keys:
      unused = ['v', 'v_bias']
    for name in unused:
      if hasattr(self, name):
        delattr(self, name)

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], Any]:
    out, new = super().__call__(x, tokens)
    return out, new if self.settings.source is None else Nothing()

  def new_cache(self, x: Float[Array, 'B T D'], tokens: LayerInputs) -> KVCache:
    """See `Attention`; the source's if the layer has no keys and values."""
    if tokens.shared is not None:
      return tokens.shared
    k = layers.product('btd,dkh->btkh', x, self.k)
    if self.config.qkv_bias:
      k = k + self.k_bias[...]
    v = k
    if not self.settings.values_are_keys:
      v = layers.product('btd,dkh->btkh', x, self.v)
      if self.config.qkv_bias:
        v = v + self.v_bias[...]
    k = self._turned(k, self.k_norm, tokens)
    v = layers.unscaled_rms(v, self.config.norm_eps)
    return KVCache(
      k.transpose(0, 2, 3, 1),
      v.transpose(0, 2, 1, 3),
      tokens.positions,
      tokens.segments,
    )
