"""Several residual streams, of which a layer changes one (AltUp, Gemma 3n).

See arXiv 2301.13310. Each layer predicts all streams from one another, runs on
the active one, and corrects all of them by what changed there.
"""

import dataclasses
import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.block import Block
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Settings
from vtokens.models.layer_inputs import LayerInputs

# Least mean square that a stream is divided by.
_LEAST = 1e-5


@dataclasses.dataclass(frozen=True, repr=False)
class AltUp(Settings):
  """Settings; see `DecoderConfig.streams`.

  Attributes:
    count: number of streams (J).
    active: number of the stream that layers run on.
    scaled: whether the active stream is scaled before a layer's own input is
      added to the others.
    laurel_rank: rank of a second path around attention (LAuReL,
      arXiv 2411.07501).
  """

  count: int
  active: int
  scaled: bool
  laurel_rank: int

  def ends(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> 'Streams':
    """Makes what is before the first layer and after the last."""
    return Streams(self, config, dtype, rngs)

  def block(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    kind: LayerKind,
  ) -> Block:
    """Makes one layer."""
    return _Block(self, config, dtype, rngs, kind)


class Streams(nnx.Module):
  """Makes streams of the embeddings, and one stream of them at the end."""

  def __init__(
    self,
    settings: AltUp,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    def matrices() -> nnx.List[nnx.Param[Array]]:
      shape, axes = (config.embed_dim,) * 2, ('embed', 'embed_out')
      return nnx.List(
        layers.param(rngs, shape, axes, dtype, inputs=1)
        for _ in range(1, settings.count)
      )

    self.first, self.last = matrices(), matrices()

  def open(self, x: Float[Array, 'B T D']) -> Float[Array, 'J B T D']:
    """The streams before the first layer."""
    others = [
      _as_large(layers.product('btd,de->bte', x, m), x) for m in self.first
    ]
    return jnp.stack([x, *others])

  def close(self, x: Float[Array, 'J B T D']) -> Float[Array, 'B T D']:
    """The residual stream after the last layer."""
    others = [
      _as_large(layers.product('btd,de->bte', stream, m), x[0])
      for stream, m in zip(x[1:], self.last, strict=True)
    ]
    return jnp.mean(jnp.stack([x[0], *others]), axis=0)


def _as_large(
  x: Float[Array, 'B T D'], like: Float[Array, 'B T D']
) -> Float[Array, 'B T D']:
  """x, scaled to the root mean square of another stream."""
  own = jnp.mean(x**2, axis=-1, keepdims=True)
  other = jnp.mean(like**2, axis=-1, keepdims=True)
  return x * jnp.sqrt(other) / jnp.sqrt(jnp.maximum(own, _LEAST))


class _Coefficients(nnx.Module):
  """How the streams of a token depend on one another."""

  def __init__(
    self,
    settings: AltUp,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    count, width = settings.count, config.embed_dim

    def matrix(
      shape: tuple[int, ...], axes: tuple[str, ...]
    ) -> nnx.Param[Array]:
      return layers.param(rngs, shape, axes, dtype, inputs=1, exact=True)

    self.settings = settings
    self.router = matrix((width, count), ('embed', 'stream'))
    self.prediction = matrix((count, count, count), ('stream', 'to', 'from'))
    self.correction = matrix((count, count), ('stream', 'to'))
    self.norm = layers.RMSNorm((width,), ('norm',), config, dtype, rngs)
    zeros = jax.nn.initializers.zeros
    self.scale = layers.param(rngs, (width,), ('norm',), dtype, zeros)
    self.factor = 1 / width

  def _routed(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T J']:
    y = layers.scaled(self.norm(x), self.factor)
    y = jnp.einsum('btd,dj->btj', y, self.router[...])
    return jnp.tanh(y.astype(jnp.float32)).astype(x.dtype)

  def predict(self, x: Float[Array, 'J B T D']) -> Float[Array, 'J B T D']:
    """The streams as they are expected after the layer."""
    routed = self._routed(x[self.settings.active])
    mixed = jnp.einsum('btj,jik->btik', routed, self.prediction[...])
    return x + jnp.einsum('btik,kbtd->ibtd', mixed, x)

  def correct(
    self, predicted: Float[Array, 'J B T D'], y: Float[Array, 'B T D']
  ) -> Float[Array, 'J B T D']:
    """The streams after the layer.

    Args:
      predicted: what `predict` returned.
      y: the active stream, as the layer has changed it.
    """
    shares = jnp.einsum(
      'btj,ji->bti', self._routed(y), self.correction[...]
    ) + jnp.asarray(1, y.dtype)
    new = y - predicted[self.settings.active]
    return predicted + new * shares.transpose(2, 0, 1)[..., None]


class _Laurel(nnx.Module):
  """x and a norm of a product of low rank."""

  def __init__(
    self, rank: int, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    width = config.embed_dim
    matrix = layers.param
    self.left = matrix(rngs, (width, rank), ('embed', 'rank'), dtype, inputs=1)
    self.right = matrix(rngs, (rank, width), ('rank', 'embed'), dtype, inputs=1)
    self.norm = layers.residual_norm(config, dtype, rngs)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    y = layers.product('btd,dr->btr', x, self.left)
    return x + self.norm(layers.product('btr,rd->btd', y, self.right))


class _Block(Block):
  """A layer on several streams."""

  def __init__(
    self,
    settings: AltUp,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    kind: LayerKind,
  ):
    super().__init__(config, dtype, rngs, kind)
    self.settings = settings
    self.altup = _Coefficients(settings, config, dtype, rngs)
    self.laurel = _Laurel(settings.laurel_rank, config, dtype, rngs)

  def __call__(
    self, x: Float[Array, 'J B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'J B T D'], Any]:
    """See `Block`."""
    predicted = self.altup.predict(x)
    active = predicted[self.settings.active]
    normed = self.attention_norm(active)
    y, new = self.attention(normed, tokens)
    y = active + self.attention_post_norm(y)
    y = (y + self.laurel(normed)) / math.sqrt(2)
    y = y + self.mlp_post_norm(self.mlp(self.mlp_norm(y), tokens))
    streams = self.altup.correct(predicted, y)
    first = streams[self.settings.active]
    if self.settings.scaled:
      first = first * self.altup.scale[...]
    if tokens.own is not None:
      streams = streams.at[1:].add(self.per_layer(first, tokens.own))
    return streams, new

  def new_cache(self, x: Float[Array, 'J B T D'], tokens: LayerInputs) -> Any:
    """See `Block`."""
    active = self.altup.predict(x)[self.settings.active]
    return super().new_cache(active, tokens)
