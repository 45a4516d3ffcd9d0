"""What all layers keep of tokens, for later tokens."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from vtokens.devices import partitioning
from vtokens.models import layer_runs
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kv_cache import KVCache

# Names of axes that mean something to the methods below.
_ROWS, _SLOTS = 'batch', 'slots'


class LayerCache:
  """What a layer keeps of tokens; a `flax.struct.dataclass` of arrays.

  The cache of a stack of layers has the same arrays with a leading axis.

  Attributes:
    AXES: logical axes of each array of one layer. `batch` is the axis of rows.
      An array with an axis `slots` has a slot for each token; any other array
      summarises all tokens up to the last.
  """

  AXES: ClassVar[Mapping[str, tuple[str, ...]]]

  def mapped(self, function: Callable[..., Any], *others: 'LayerCache') -> Self:
    """Applies `function(axes, array, *arrays of others)` to each array."""
    return dataclasses.replace(
      self,  # type: ignore[type-var]
      **{
        name: function(
          axes, *(getattr(cache, name) for cache in (self, *others))
        )
        for name, axes in self.AXES.items()
      },
    )

  def for_layer(
    self, positions: Int[Array, 'B S'], segments: Int[Array, 'B S'] | None
  ) -> Any:
    """The form in which a layer reads its cache."""
    del positions, segments
    return self


@struct.dataclass
class KeysValues(LayerCache):
  """Keys and values; see `KVCache`, the form that a layer reads and returns."""

  AXES = {  # noqa: RUF012
    'k': ('batch', 'kv_heads', 'head', 'slots'),
    'v': ('batch', 'kv_heads', 'slots', 'head'),
  }

  k: Float[Array, '*L B K H S']
  v: Float[Array, '*L B K S H']

  def for_layer(
    self, positions: Int[Array, 'B S'], segments: Int[Array, 'B S'] | None
  ) -> KVCache:
    """The keys and values with the positions of their tokens."""
    return KVCache(self.k, self.v, positions, segments)


@struct.dataclass
class Nothing(LayerCache):
  """The cache of a layer that has no token mixer, or reads another's cache."""

  AXES = {}  # noqa: RUF012


@struct.dataclass
class Cache:
  """What a model keeps of tokens.

  Attributes:
    stacks: cache of each stack of `layer_runs.stacks`, with a leading axis of
      its layers.
    positions: position of each slot's token, array of shape [B, S], int32; -1
      marks an empty slot, which no query sees.
    segments: number of the packed sequence that each slot belongs to, array of
      shape [B, S], int32; None if a row is one sequence, or if the slots
      precede every sequence of the row.
  """

  stacks: tuple[Any, ...]
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S'] | None = None

  def with_room(self, slots: int) -> 'Cache':
    """This cache followed by empty slots, for `write`."""

    def widen(axes: tuple[str, ...], x: Array) -> Array:
      if _SLOTS not in axes:
        return x
      widths = [(0, 0)] * x.ndim
      widths[_axis(axes, _SLOTS)] = (0, slots)
      return jnp.pad(x, widths)

    positions, segments = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, slots)], constant_values=-1),
      (self.positions, self.segments),
    )
    return Cache(self._stacks(widen), positions, segments)

  def write(self, other: 'Cache', slot: Int[Array, '']) -> 'Cache':
    """This cache with its slots from `slot` on overwritten by the other's.

    Summaries of all tokens are the other's, whose tokens follow.
    """
    put = jax.lax.dynamic_update_slice_in_dim

    def over(axes: tuple[str, ...], x: Array, y: Array) -> Array:
      return put(x, y, slot, axis=_at(axes, x)) if _SLOTS in axes else y

    positions, segments = jax.tree.map(
      lambda x, y: put(x, y, slot, axis=1),
      (self.positions, self.segments),
      (other.positions, other.segments),
    )
    return Cache(self._stacks(over, other), positions, segments)

  def then(self, other: 'Cache') -> 'Cache':
    """This cache followed by the other, whose tokens follow."""

    def join(axes: tuple[str, ...], x: Array, y: Array) -> Array:
      if _SLOTS not in axes:
        return y
      return jnp.concatenate([x, y], axis=_at(axes, x))

    positions, segments = jax.tree.map(
      lambda x, y: jnp.concatenate([x, y], axis=1),
      (self.positions, self.segments),
      (other.positions, other.segments),
    )
    return Cache(self._stacks(join, other), positions, segments)

  def row(self, number: Any, slots: int) -> 'Cache':
    """One row, cut to its first slots."""

    def cut(axes: tuple[str, ...], x: Array) -> Array:
      at = x.ndim + _axis(axes, _ROWS)
      x = jax.lax.dynamic_slice_in_dim(x, number, 1, at)
      if _SLOTS not in axes:
        return x
      return jax.lax.slice_in_dim(x, 0, slots, axis=_at(axes, x))

    return self._rowwise(cut)

  def repeated(self, rows: int) -> 'Cache':
    """The cache of one row as a cache of many equal rows."""

    def repeat(axes: tuple[str, ...], x: Array) -> Array:
      shape = list(x.shape)
      shape[_axis(axes, _ROWS)] = rows
      return jnp.broadcast_to(x, shape)

    return self._rowwise(repeat)

  def emptied(self, rows: int, slots: int) -> 'Cache':
    """A cache of no tokens for other numbers of rows and slots."""

    def empty(axes: tuple[str, ...], x: Array) -> Array:
      shape = list(x.shape)
      shape[_axis(axes, _ROWS)] = rows
      if _SLOTS in axes:
        shape[_axis(axes, _SLOTS)] = slots
      return jnp.zeros(shape, x.dtype)

    positions = jnp.full((rows, slots), -1, jnp.int32)
    return Cache(self._stacks(empty), positions)

  def with_row(self, one: 'Cache', number: Any) -> 'Cache':
    """Writes the cache of one row into one of many, from the first slot on."""

    def put(axes: tuple[str, ...], x: Array, y: Array) -> Array:
      start = [0] * x.ndim
      start[_axis(axes, _ROWS)] = number
      return jax.lax.dynamic_update_slice(x, y, start)

    return self._rowwise(put, one)

  def constrained(self, mesh: jax.sharding.Mesh | None) -> 'Cache':
    """The cache spread over the devices."""

    def place(axes: tuple[str, ...], x: Array) -> Array:
      names = (None,) * (x.ndim - len(axes)) + axes
      return partitioning.constrain(x, mesh, names)

    return self._rowwise(place)

  def _stacks(
    self, function: Callable[..., Any], *others: 'Cache'
  ) -> tuple[Any, ...]:
    return tuple(
      stack.mapped(function, *rest)
      for stack, *rest in zip(
        self.stacks, *(cache.stacks for cache in others), strict=True
      )
    )

  def _rowwise(self, function: Callable[..., Any], *others: 'Cache') -> 'Cache':
    """Applies a function of rows to all arrays."""
    caches = (self, *others)
    shared = functools.partial(function, (_ROWS, _SLOTS))
    segments = None
    if self.segments is not None:
      segments = shared(*(cache.segments for cache in caches))
    return Cache(
      self._stacks(function, *others),
      shared(*(cache.positions for cache in caches)),
      segments,
    )


def kept(new: KVCache | LayerCache) -> LayerCache:
  """The `LayerCache` of what a layer returns for later tokens."""
  return KeysValues(new.k, new.v) if isinstance(new, KVCache) else new


def of_keys_values(
  config: DecoderConfig,
  keys: Float[Array, 'L B K H S'],
  values: Float[Array, 'L B K S H'],
  positions: Int[Array, 'B S'],
  segments: Int[Array, 'B S'] | None = None,
) -> Cache:
  """The cache with the keys and values of all layers.

  Args:
    config: a decoder whose layers all have keys and values of one shape.
    keys: rotated keys.
    values: values.
    positions: see `Cache`.
    segments: see `Cache`.
  """
  stacks = [
    KeysValues(*(layer_runs.part(x, numbers) for x in (keys, values)))
    for numbers in layer_runs.stacks(config)
  ]
  return Cache(tuple(stacks), positions, segments)


def keys_values(
  config: DecoderConfig, cache: Cache
) -> tuple[Float[Array, 'L B K H S'], Float[Array, 'L B K S H']]:
  """The keys and values of all layers; see `of_keys_values`."""
  return (
    layer_runs.whole(config, [stack.k for stack in cache.stacks]),
    layer_runs.whole(config, [stack.v for stack in cache.stacks]),
  )


def _axis(axes: tuple[str, ...], name: str) -> int:
  """Number of an axis, counted from the last."""
  return axes.index(name) - len(axes)


def _at(axes: tuple[str, ...], x: Shaped[Array, '*L']) -> int:
  """Number of the axis of slots of an array, counted from the first."""
  return x.ndim + _axis(axes, _SLOTS)
