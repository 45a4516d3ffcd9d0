"""Inputs of tokens to each layer, besides the residual stream.

Gemma 3n and 4 call them per-layer embeddings. A token's input to layer l is the
sum of two parts: row `id` of a second embedding matrix, which has P values for
each layer, and a projection of the token's embedding.

A virtual token has no row in the second matrix. It gets the row of id 0, the
padding, as images do in transformers, and as llama.cpp and vLLM's multimodal
class give it to every embedding that comes without an id.
"""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.devices import partitioning
from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig

# Row of tokens without an id in the vocabulary.
PADDING = 0


class Inputs(nnx.Module):
  """Makes the inputs of all layers; see above."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    count, width = config.num_layers, config.per_layer_dim
    self.config = config
    self.rows = config.per_layer_rows or config.vocab_size
    self.embedding = layers.param(
      rngs,
      (self.rows, count * width),
      ('vocab', 'embed'),
      dtype,
      inputs=0,
    )
    self.projection = layers.param(
      rngs,
      (config.embed_dim, count, width),
      ('embed', 'layers_in', 'layer_in'),
      dtype,
      inputs=1,
    )
    self.norm = layers.RMSNorm((width,), ('norm',), config, dtype, rngs)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'],
    mesh: jax.sharding.Mesh | None,
    *,
    stationary: bool = False,
  ) -> Float[Array, 'L B T P']:
    """The inputs of each layer.

    Args:
      x: embeddings of the tokens, as the first layer reads them.
      ids: ids of the tokens, int32. Ids beyond the vocabulary are virtual
        tokens, whose embeddings are in x. Gemma 3n has no rows for images.
      mesh: the devices; None for one device.
      stationary: see `Decoder.__call__`.
    """
    config = self.config
    width = config.per_layer_dim
    ids = jnp.where(ids < self.rows, ids, PADDING)
    # As `Decoder.embed`.
    ids = partitioning.constrain(ids, mesh, ('batch_over_data', None))
    rows = self.embedding[...][ids]
    rows = partitioning.constrain(
      rows, mesh, ('batch_over_data', None, 'embed_over_fsdp')
    )
    if not stationary:
      rows = partitioning.constrain(rows, mesh, ('batch', None, None))
    rows = rows.reshape(*ids.shape, config.num_layers, width)
    rows = layers.scaled(rows, width**0.5)
    projection = self.projection
    if not stationary:
      projection = partitioning.gather(projection, mesh)
    own = jnp.einsum('btd,dlp->btlp', x, projection[...])
    own = self.norm(layers.scaled(own, config.embed_dim**-0.5))
    both = layers.scaled(own + rows, 2.0**-0.5)
    return both.transpose(2, 0, 1, 3)


class Gate(nnx.Module):
  """Adds a layer's input to the residual stream, after its MLP."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    dim, width = config.embed_dim, config.per_layer_dim
    self.gate = layers.param(
      rngs, (dim, width), ('embed', 'layer_in'), dtype, inputs=1
    )
    self.projection = layers.param(
      rngs, (width, dim), ('layer_in', 'embed'), dtype, inputs=1
    )
    self.norm = layers.residual_norm(config, dtype, rngs)
    self.activation = config.activation

  def __call__(
    self, x: Float[Array, 'B T D'], own: Float[Array, 'B T P']
  ) -> Float[Array, 'B T D']:
    """What is added.

    Args:
      x: the residual stream.
      own: the layer's input.
    """
    y = layers.product('btd,dp->btp', x, self.gate)
    y = layers.ACTIVATIONS[self.activation](y) * own
    return self.norm(layers.product('btp,pd->btd', y, self.projection))
