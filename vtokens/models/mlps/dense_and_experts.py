"""An MLP for all tokens and experts for a few, side by side (Gemma 4)."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mlps.experts import ExpertMLP, Experts


@dataclasses.dataclass(frozen=True, repr=False)
class DenseAndExperts(Settings):
  """Makes both; see `decoder_config.BlockPart`.

  Each of them norms its input and its output. The router reads another norm of
  the same residual stream, without a scale but with factors of its own.

  Attributes:
    experts: the experts.
    width: width of the MLP of all tokens; None for `mlp_dim`.
  """

  experts: Experts
  width: int | None = None

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return _DenseAndExperts(self, config, dtype, rngs)


class _DenseAndExperts(ExpertMLP):
  """See `DenseAndExperts`.

  Attributes:
    norms_input: see `block.Block`.
  """

  norms_input = True

  def __init__(
    self,
    settings: DenseAndExperts,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    super().__init__(settings.experts, config, dtype, rngs)

    def norm() -> layers.RMSNorm | layers.LayerNorm:
      return layers.residual_norm(config, dtype, rngs)

    ones = jax.nn.initializers.ones
    width = config.embed_dim
    self.router_scale = layers.param(rngs, (width,), ('norm',), dtype, ones)
    self.norm = norm()
    self.dense = layers.GatedMLP(config, dtype, rngs, settings.width)
    self.dense_post_norm = norm()
    self.experts_norm = norm()
    self.experts_post_norm = norm()
    self.eps = config.norm_eps
    # Rounded to the dtype of activations, as in transformers.
    self.factor = width**-0.5

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    dense = self.dense_post_norm(self.dense(self.norm(x), tokens))
    compared = layers.unscaled_rms(x, self.eps) * self.router_scale[...]
    routed = self.routed(self.experts_norm(x), tokens, compared * self.factor)
    return dense + self.experts_post_norm(routed)
