"""A gated MLP with multipliers."""

import dataclasses

import flax.nnx as nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.layer_inputs import LayerInputs


@dataclasses.dataclass(frozen=True, repr=False)
class ScaledMLP(Settings):
  """Makes the MLP; see `decoder_config.BlockPart`.

  Attributes:
    gate: multiplies the gate before the activation.
    out: multiplies the output.
  """

  gate: float
  out: float

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return _ScaledMLP(self, config, dtype, rngs)


class _ScaledMLP(layers.GatedMLP):
  def __init__(
    self,
    settings: ScaledMLP,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    super().__init__(config, dtype, rngs)
    self.settings = settings

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    del tokens
    gate = layers.product('btd,df->btf', x, self.gate)
    gate = layers.scaled(gate, self.settings.gate)
    y = layers.ACTIVATIONS[self.activation](gate)
    y = y * layers.product('btd,df->btf', x, self.up)
    y = layers.product('btf,fd->btd', y, self.down)
    return layers.scaled(y, self.settings.out)
