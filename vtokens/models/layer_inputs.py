"""Inputs of a layer besides the residual stream."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from vtokens.models.kv_cache import KVCache


@dataclasses.dataclass(frozen=True)
class NewTokens:
  """What every layer needs to know of the new tokens.

  Attributes:
    positions: positions of the new tokens, int32; -1 marks padding.
    segments: see `Decoder.__call__`.
    parents: see `Decoder.__call__`.
    mesh: the devices; None for one device.
    stationary: see `Decoder.__call__`.
    num_segments: number of segments whose states recurrent layers keep.
  """

  positions: Int[Array, 'B T']
  segments: Int[Array, 'B T'] | None
  parents: Int[Array, 'B T'] | None
  mesh: jax.sharding.Mesh | None
  stationary: bool = False
  num_segments: int = 1

  def for_layer(self, **own: Any) -> 'LayerInputs':
    """The inputs of one layer.

    Args:
      **own: the attributes that `LayerInputs` adds.
    """
    return LayerInputs(**vars(self), **own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInputs(NewTokens):
  """Everything that one layer needs besides the residual stream.

  Attributes:
    angles: cosines and sines of the layer's rotary embedding; see
      `rope.angles`.
    window: number of positions that a query of the layer sees; None for all.
    caches: the layer's part of each cache of earlier tokens: `KVCache`s for
      attention, otherwise `cache.LayerCache`s.
    trained_caches: the layer's part of each cache that gets gradients; see
      `Decoder.__call__`.
    shared: keys and values of the new tokens in an earlier layer, if the layer
      reads them instead of its own; `caches` are then that layer's, too.
    own: the layer's own input; see `per_layer`.
  """

  angles: tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']]
  window: Int[Array, ''] | int | None
  caches: Sequence[Any] = ()
  trained_caches: Sequence[Any] = ()
  shared: KVCache | None = None
  own: Float[Array, 'B T P'] | None = None
