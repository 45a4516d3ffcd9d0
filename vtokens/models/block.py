"""One layer of the decoder."""

import flax.nnx as nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.attention import Attention
from vtokens.models.decoder_config import BlockPart, DecoderConfig
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs


class Block(nnx.Module):
  """One decoder layer: attention and MLP on the residual stream.

  Args:
    config: the architecture.
    dtype: dtype of the weights.
    rngs: random streams.
    part: makes the MLP; None for the MLP of the config.
  """

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    part: BlockPart | None = None,
  ):
    def norm() -> layers.RMSNorm | layers.LayerNorm:
      return layers.residual_norm(config, dtype, rngs)

    self.config = config
    attention = Attention if config.attention is None else config.attention
    mlp = part or config.mlp or layers.GatedMLP
    self.attention = attention(config, dtype, rngs)
    self.mlp = mlp(config, dtype, rngs)
    if config.pre_norm:
      self.attention_norm = norm()
      if not config.parallel or config.parallel_norms:
        self.mlp_norm = norm()
    if config.post_norm:
      self.attention_post_norm = norm()
      self.mlp_post_norm = norm()

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    pre, post = self.config.pre_norm, self.config.post_norm
    normed = self.attention_norm(x) if pre else x
    y, new = self.attention(normed, tokens)
    y = self._scaled(self.attention_post_norm(y) if post else y)
    if self.config.parallel:
      if self.config.parallel_norms:
        normed = self.mlp_norm(x)
      return x + y + self._scaled(self.mlp(normed, tokens)), new
    x = x + y
    y = self.mlp(self.mlp_norm(x) if pre else x, tokens)
    return x + self._scaled(self.mlp_post_norm(y) if post else y), new

  def _scaled(self, y: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """An output as it is added to the residual stream."""
    scale = self.config.residual_scale
    return y if scale == 1.0 else y * jnp.asarray(scale, y.dtype)

  def keys_values(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> KVCache:
    """The keys and values of `__call__` alone."""
    y = self.attention_norm(x) if self.config.pre_norm else x
    return self.attention.keys_values(y, tokens)
