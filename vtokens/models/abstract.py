"""Decoders with shapes instead of arrays, and numbers of weights."""

import math

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from vtokens.models import quantize
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig


def abstract_decoder(
  config: DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
  method: str = 'none',
) -> Decoder:
  """The decoder with shapes instead of arrays; nothing is allocated.

  Args:
    config: the architecture.
    dtype: dtype of the weights.
    mesh: see `Decoder`.
    method: quantisation of the layers' matrices; see `config.Base.quantize`.
  """

  def make() -> Decoder:
    model = Decoder(config, dtype, nnx.Rngs(0), mesh)
    if method != 'none':
      quantize.quantise_layers(model.layers, method)
    return model

  return nnx.eval_shape(make)


def num_params(config: DecoderConfig, *, active: bool = False) -> int:
  """Number of weights. A head that is the embedding matrix counts once.

  Args:
    config: the architecture.
    active: count only the weights that one token uses: of all experts, those
      that it is sent to.
  """
  model = abstract_decoder(config, jnp.dtype(jnp.float32))
  total = 0.0
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    if not variable.get_metadata().get('constant'):
      share = variable.get_metadata('active') if active else 1
      total += math.prod(variable.shape) * share
  return round(total)
