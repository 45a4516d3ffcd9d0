"""Attention and Mamba 2 side by side in one layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.nnx as nnx
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vtokens.models import layers
from vtokens.models.cache import KeysValues
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers.attention import Attention
from vtokens.models.mixers.mamba2 import Mamba2, Mamba2Mixer, SelectiveStates

# What a layer reads of a cache.
_Parts = tuple[KVCache, SelectiveStates]


@struct.dataclass
class KeysValuesStates(SelectiveStates):
  """Keys and values, and the states of Mamba 2.

  Attributes:
    k: see `KeysValues`.
    v: see `KeysValues`.
  """

  AXES = {**SelectiveStates.AXES, **KeysValues.AXES}  # noqa: RUF012

  k: Float[Array, '*L B K H S']
  v: Float[Array, '*L B K S H']

  def for_layer(
    self, positions: Int[Array, 'B S'], segments: Int[Array, 'B S'] | None
  ) -> _Parts:
    """Both parts as their layers read them."""
    states = SelectiveStates(self.state, self.x, self.b, self.c)
    return KVCache(self.k, self.v, positions, segments), states


@dataclasses.dataclass(frozen=True, repr=False)
class ParallelMixer(Settings):
  """Makes the mixer; see `decoder_config.BlockPart`.

  Both parts read the same input. Their outputs are added.

  Attributes:
    mamba: makes Mamba 2.
    key_scale: factor of the keys. It is part of `DecoderConfig.attention_scale`
      and kept here for config.json alone.
    in_scale: multiplies the input of attention.
    out_scale: multiplies the output of attention.
    mamba_scale: multiplies the output of Mamba 2.
  """

  mamba: Mamba2
  key_scale: float = 1.0
  in_scale: float = 1.0
  out_scale: float = 1.0
  mamba_scale: float = 1.0

  recurrent: ClassVar[bool] = True
  attends: ClassVar[bool] = True

  @property
  def token_flops(self) -> float:
    """FLOPs of a token in the states."""
    return self.mamba.token_flops

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The mixer of one layer."""
    return _ParallelMixer(self, config, dtype, rngs)


class _ParallelMixer(nnx.Module):
  def __init__(
    self,
    settings: ParallelMixer,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.settings = settings
    self.attention = Attention(config, dtype, rngs)
    self.mamba = Mamba2Mixer(settings.mamba, config, dtype, rngs)

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], KeysValuesStates]:
    settings = self.settings
    attended, new = self.attention(
      layers.scaled(x, settings.in_scale), _with_part(tokens, 0)
    )
    y, states = self.mamba(x, _with_part(tokens, 1))
    y = layers.scaled(y, settings.mamba_scale) + layers.scaled(
      attended, settings.out_scale
    )
    return y, _joined(new, states)

  def new_cache(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> KeysValuesStates:
    """The cache of the tokens, for later tokens."""
    return _joined(
      self.attention.new_cache(
        layers.scaled(x, self.settings.in_scale), _with_part(tokens, 0)
      ),
      self.mamba.new_cache(x, _with_part(tokens, 1)),
    )


def _with_part(tokens: LayerInputs, part: int) -> LayerInputs:
  """The inputs with one part of each cache."""
  caches: Sequence[Any] = [cache[part] for cache in tokens.caches]
  return dataclasses.replace(tokens, caches=caches)


def _joined(new: KVCache, states: SelectiveStates) -> KeysValuesStates:
  return KeysValuesStates(
    states.state, states.x, states.b, states.c, new.k, new.v
  )
