"""An MLP without a gate and with xIELU, whose slopes are trained."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.layer_inputs import LayerInputs


@dataclasses.dataclass(frozen=True)
class XIELUMLP:
  """Makes the MLP `down(xielu(up(x)))`; see `decoder_config.BlockPart`."""

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return _XIELUMLP(config, dtype, rngs)


class _XIELUMLP(nnx.Module):
  """See `XIELUMLP`.

  Attributes:
    alpha_p: its softplus is the curvature above zero, array of shape [1].
    alpha_n: its softplus and beta make the slope below zero, array of shape
      [1].
    beta: slope at zero, array of shape []; a constant.
    eps: largest argument of the exponential, array of shape []; a constant.
  """

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    dim, width = config.embed_dim, config.mlp_dim

    def number(value: float, *shape: int) -> nnx.Param[Array]:
      axes = ('one',) * len(shape)
      init = jax.nn.initializers.constant(value)
      fixed = not shape
      return layers.param(rngs, shape, axes, dtype, init, constant=fixed)

    self.up = layers.param(
      rngs, (dim, width), ('embed', 'mlp'), dtype, inputs=1
    )
    self.down = layers.param(
      rngs, (width, dim), ('mlp', 'embed'), dtype, inputs=1
    )
    self.alpha_p = number(0.2, 1)
    self.alpha_n = number(-1.0, 1)
    self.beta = number(0.5)
    self.eps = number(-1e-6)

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    del tokens
    y = layers.product('btd,df->btf', x, self.up)
    return layers.product('btf,fd->btd', self._xielu(y), self.down)

  def _xielu(self, x: Float[Array, '*B']) -> Float[Array, '*B']:
    """The activation (arXiv 2411.13010), computed in float32."""
    alpha_p, alpha_n, beta, eps = (
      weight[...].astype(jnp.float32)
      for weight in (self.alpha_p, self.alpha_n, self.beta, self.eps)
    )
    y = x.astype(jnp.float32)
    above = jax.nn.softplus(alpha_p) * y * y
    below = (jnp.expm1(jnp.minimum(y, eps)) - y) * (
      beta + jax.nn.softplus(alpha_n)
    )
    return (jnp.where(y > 0, above, below) + beta * y).astype(x.dtype)
