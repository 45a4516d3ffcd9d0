"""Inputs of a layer besides the residual stream."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from vtokens.models.kv_cache import KVCache


@dataclasses.dataclass(frozen=True)
class LayerInputs:
  """Everything that one layer needs besides the residual stream.

  Attributes:
    positions: positions of the new tokens, int32; -1 marks padding.
    segments: see `Decoder.__call__`.
    parents: see `Decoder.__call__`.
    angles: cosines and sines of the layer's rotary embedding; see
      `rope.angles`.
    window: positions that a query of the layer sees; None for all.
    caches: the layer's part of the caches: for attention `KVCache`s, otherwise
      `cache.LayerCache`s.
    trained_caches: the layer's part of the caches that get gradients; see
      `Decoder.__call__`.
    mesh: the devices; None for one device.
    stationary: see `Decoder.__call__`.
    num_segments: see `Decoder.__call__`.
    shared: the new tokens' keys and values in an earlier layer, if the layer
      reads these instead of its own; `caches` are then that layer's, too.
    own: inputs of this layer besides the residual stream; see `per_layer`.
  """

  positions: Int[Array, 'B T']
  segments: Int[Array, 'B T'] | None
  parents: Int[Array, 'B T'] | None
  angles: tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']]
  window: Int[Array, ''] | int | None
  caches: Sequence[Any]
  mesh: jax.sharding.Mesh | None
  trained_caches: Sequence[Any] = ()
  stationary: bool = False
  num_segments: int = 1
  shared: KVCache | None = None
  own: Float[Array, 'B T P'] | None = None
