"""An MLP without a gate."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.layer_inputs import LayerInputs


@dataclasses.dataclass(frozen=True)
class PlainMLP:
  """Makes the MLP `down(act(up(x)))`; see `decoder_config.BlockPart`.

  Attributes:
    bias: whether both matrices have a bias.
  """

  bias: bool = False

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return UngatedMLP(config, dtype, rngs, bias=self.bias)


class UngatedMLP(nnx.Module):
  """See `PlainMLP`.

  Args:
    config: gives `embed_dim` and `activation`.
    dtype: dtype of the stored weights.
    rngs: random streams.
    bias: see `PlainMLP`.
    width: width between the matrices; None for `mlp_dim`.
  """

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    *,
    bias: bool,
    width: int | None = None,
  ):
    dim, width = config.embed_dim, width or config.mlp_dim
    matrix, zeros = layers.param, jax.nn.initializers.zeros
    self.up = matrix(rngs, (dim, width), ('embed', 'mlp'), dtype, inputs=1)
    self.down = matrix(rngs, (width, dim), ('mlp', 'embed'), dtype, inputs=1)
    if bias:
      self.up_bias = layers.param(rngs, (width,), ('mlp',), dtype, zeros)
      self.down_bias = layers.param(rngs, (dim,), ('embed',), dtype, zeros)
    self.has_bias = bias
    self.activation = config.activation

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    del tokens
    y = layers.product('btd,df->btf', x, self.up)
    if self.has_bias:
      y = y + self.up_bias[...]
    y = layers.ACTIVATIONS[self.activation](y)
    y = layers.product('btf,fd->btd', y, self.down)
    return y + self.down_bias[...] if self.has_bias else y
