"""The token mixer of LFM2: a short convolution between two gates."""

import dataclasses
from typing import Any, ClassVar

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.cache import LayerCache
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers import causal_conv
from vtokens.models.mixers.packed_segments import order_of


@struct.dataclass
class LastInputs(LayerCache):
  """The last inputs of the convolution of each of M segments, oldest first."""

  AXES = {'inputs': ('batch', 'segment', 'tap', 'mlp')}  # noqa: RUF012

  inputs: Float[Array, '*L B M W D']


@dataclasses.dataclass(frozen=True, repr=False)
class ShortConv(Settings):
  """Makes the mixer; see `decoder_config.BlockPart`.

  Attributes:
    taps: inputs of the convolution.
    bias: whether the projections and the convolution have biases.
  """

  taps: int
  bias: bool = False

  recurrent: ClassVar[bool] = True

  @property
  def token_flops(self) -> float:
    """FLOPs of a token besides products: too few to count."""
    return 0.0

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The mixer of one layer."""
    return _ShortConv(self, config, dtype, rngs)


class _ShortConv(nnx.Module):
  def __init__(
    self,
    settings: ShortConv,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.settings = settings
    dim = config.embed_dim

    def matrix(axes: tuple[str, str]) -> Any:
      return layers.param(rngs, (dim, dim), axes, dtype, inputs=1)

    def vector(axis: str) -> Any:
      zeros = jax.nn.initializers.zeros
      return layers.param(rngs, (dim,), (axis,), dtype, zeros)

    # The channels are sharded like an MLP's.
    self.in_gate = matrix(('embed', 'mlp'))
    self.out_gate = matrix(('embed', 'mlp'))
    self.inner = matrix(('embed', 'mlp'))
    self.kernel = layers.param(
      rngs, (dim, settings.taps), ('mlp', 'tap'), dtype, taps=True
    )
    self.out = matrix(('mlp', 'embed'))
    if settings.bias:
      self.in_gate_bias, self.out_gate_bias = vector('mlp'), vector('mlp')
      self.inner_bias, self.kernel_bias = vector('mlp'), vector('mlp')
      self.out_bias = vector('embed')

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], LastInputs]:
    y, last = self._convolved(x, tokens)
    y = layers.product('btc,cd->btd', self._input(x, 'out_gate') * y, self.out)
    return y + self.out_bias[...] if self.settings.bias else y, last

  def new_cache(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> LastInputs:
    """The last inputs of the convolution, for later tokens."""
    return self._convolved(x, tokens)[1]

  def _convolved(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T C'], LastInputs]:
    before = tokens.caches[-1].inputs if tokens.caches else None
    y, last = causal_conv.convolve(
      self._input(x, 'in_gate') * self._input(x, 'inner'),
      self.kernel[...],
      order_of(tokens, None if before is None else before.shape[1]),
      bias=self.kernel_bias[...] if self.settings.bias else None,
      initial=before,
    )
    return y, LastInputs(last)

  def _input(self, x: Float[Array, 'B T D'], name: str) -> Array:
    """One part of the projection of the residual stream."""
    y = layers.product('btd,dc->btc', x, getattr(self, name))
    return y + getattr(self, f'{name}_bias')[...] if self.settings.bias else y
