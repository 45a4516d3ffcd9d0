"""One layer of the decoder."""

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers, per_layer
from vtokens.models.cache import Nothing
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers.attention import Attention


class Block(nnx.Module):
  """One decoder layer: a token mixer and an MLP on the residual stream.

  A layer may have one of the two alone, with one norm before it.

  Attributes:
    attention: the token mixer: attention or a recurrent layer; None if the
      layer has an MLP alone.
    mlp: the MLP; None if the layer has a token mixer alone.

  Args:
    config: the architecture.
    dtype: dtype of the weights.
    rngs: random streams.
    kind: settings of the layer.
  """

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    kind: LayerKind,
  ):
    def norm() -> layers.RMSNorm | layers.LayerNorm:
      return layers.residual_norm(config, dtype, rngs)

    self.config = config
    mixer = kind.mixer or config.attention or Attention
    mlp = kind.mlp or config.mlp or layers.GatedMLP
    self.attention = mixer(config, dtype, rngs)
    self.mlp = mlp(config, dtype, rngs)
    if self.attention is None or self.mlp is None:
      others = config.post_norm, config.parallel, config.layer_scale
      if any(others) or config.per_layer_dim or self.attention is self.mlp:
        raise ValueError(
          'a layer without a token mixer or MLP has one norm and nothing else'
        )
      self.norm = norm()
      return
    # Some MLPs norm their input themselves.
    self.norms_mlp = config.pre_norm and not getattr(
      self.mlp, 'norms_input', False
    )
    if config.pre_norm:
      self.attention_norm = norm()
      if self.norms_mlp and (not config.parallel or config.parallel_norms):
        self.mlp_norm = norm()
    if config.post_norm:
      self.attention_post_norm = norm()
      self.mlp_post_norm = norm()
    if config.per_layer_dim:
      self.per_layer = per_layer.Gate(config, dtype, rngs)
    if config.layer_scale:
      # In transformers it is no parameter.
      ones = jax.nn.initializers.ones
      self.scale = layers.param(
        rngs, (1,), ('one',), dtype, ones, constant=True
      )

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], Any]:
    """The new residual stream, and what later tokens need of these tokens.

    The latter is a `KVCache` or a `cache.LayerCache`.
    """
    # Of what is added to the residual stream.
    scale = self.config.residual_scale
    if self.mlp is None:
      y, new = self.attention(self.norm(x), tokens)
      return x + layers.scaled(y, scale), new
    if self.attention is None:
      y = self.mlp(self.norm(x), tokens)
      return x + layers.scaled(y, scale), Nothing()
    pre, post = self.config.pre_norm, self.config.post_norm
    normed = self.attention_norm(x) if pre else x
    y, new = self.attention(normed, tokens)
    y = layers.scaled(self.attention_post_norm(y) if post else y, scale)
    if self.config.parallel:
      if self.config.parallel_norms:
        normed = self.mlp_norm(x)
      return x + y + layers.scaled(self.mlp(normed, tokens), scale), new
    x = x + y
    y = self.mlp(self.mlp_norm(x) if self.norms_mlp else x, tokens)
    x = x + layers.scaled(self.mlp_post_norm(y) if post else y, scale)
    if tokens.own is not None:
      x = x + self.per_layer(x, tokens.own)
    return x * self.scale[...] if self.config.layer_scale else x, new

  def new_cache(self, x: Float[Array, 'B T D'], tokens: LayerInputs) -> Any:
    """What `__call__` returns for later tokens, alone."""
    if self.attention is None:
      return Nothing()
    if self.mlp is None:
      return self.attention.new_cache(self.norm(x), tokens)
    y = self.attention_norm(x) if self.config.pre_norm else x
    return self.attention.new_cache(y, tokens)
