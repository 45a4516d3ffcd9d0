"""Caches of prefixes that were encoded before."""

import collections
import functools
import math
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vtokens.data.prompt_encoder import Ids
from vtokens.devices import partitioning
from vtokens.evaluation.asking import rows
from vtokens.method import generate, padding
from vtokens.models.cache import Cache
from vtokens.models.frozen_base import FrozenBase


class PrefixCache:
  """Encodes prefixes and keeps the caches that were used last.

  A prefix is found again only if all its ids are equal. If rows are spread over
  several devices, nothing is kept.

  Args:
    base: the model.
    mesh: the devices.
    most_bytes: most bytes of kept caches; 0 keeps none.

  Attributes:
    hits: number of prefixes that were found.
    misses: number of prefixes that were encoded.
  """

  def __init__(
    self, base: FrozenBase, mesh: jax.sharding.Mesh, most_bytes: int
  ):
    self.hits = self.misses = 0
    self._base = base
    self._mesh = mesh
    self._most_bytes = most_bytes
    if partitioning.round_up_rows(mesh, 1) > 1:
      self._most_bytes = 0
    self._kept: collections.OrderedDict[bytes, Cache] = (
      collections.OrderedDict()
    )
    self._sizes: dict[int, int] = {}
    self._lock = threading.Lock()

  @property
  def size(self) -> int:
    """Bytes of the kept caches."""
    with self._lock:
      return sum(map(_num_bytes, self._kept.values()))

  def clear(self) -> None:
    """Forgets all prefixes."""
    with self._lock:
      self._kept.clear()

  def caches(self, prefixes: Sequence[Ids], num_rows: int) -> Cache:
    """The cache of a batch.

    Args:
      prefixes: ids of each row.
      num_rows: rows of the batch; further ones are padding.
    """
    slots = max(padding.coarse_cache(len(prefix)) for prefix in prefixes)
    if not self._most_bytes:
      self.misses += len(prefixes)
      return self._encode_wide(prefixes, num_rows, slots)
    keys = [np.asarray(prefix, np.int32).tobytes() for prefix in prefixes]
    found = self._find(keys)
    missing = {
      key: prefix
      for key, prefix in zip(keys, prefixes, strict=True)
      if key not in found
    }
    self.hits += len(keys) - len(missing)
    self.misses += len(missing)
    if missing:
      shared = len(found) or len(missing) < len(keys)
      if not shared and not self._fits(prefixes):
        return self._encode_wide(prefixes, num_rows, slots)
      count = padding.coarse_rows(len(missing))
      new = self._encode([*missing.values()], count)
      for row, (key, prefix) in enumerate(missing.items()):
        length = padding.coarse_prefix(len(prefix))
        found[key] = _take(new, row, length=length)
      self._keep({key: found[key] for key in missing})
    whole: Cache = _empty(found[keys[0]], num_rows=num_rows, length=slots)
    for row, key in enumerate(keys):
      whole = _place(whole, found[key], row)
    return whole

  def _encode(self, prefixes: Sequence[Ids], num_rows: int) -> Cache:
    longest = max(padding.coarse_prefix(len(prefix)) for prefix in prefixes)
    arrays = rows.prefixes(prefixes, num_rows, longest)
    cache: Cache = generate.encode_prefix(
      self._base.params,
      *partitioning.shard_rows(arrays, self._mesh, num_rows),
      graph=self._base.graph,
    )
    return cache

  def _encode_wide(
    self, prefixes: Sequence[Ids], num_rows: int, slots: int
  ) -> Cache:
    cache: Cache = _widen(self._encode(prefixes, num_rows), length=slots)
    return cache

  def _fits(self, prefixes: Sequence[Ids]) -> bool:
    """Whether the caches of some prefixes can all be kept."""
    lengths = [padding.coarse_prefix(len(prefix)) for prefix in prefixes]
    return sum(map(self._bytes_of, lengths)) <= self._most_bytes

  def _bytes_of(self, length: int) -> int:
    """Bytes of the cache of one row."""
    if length not in self._sizes:
      ids = jax.ShapeDtypeStruct((1, length), np.int32)
      cache = jax.eval_shape(
        functools.partial(generate.encode_prefix, graph=self._base.graph),
        self._base.params,
        ids,
        ids,
      )
      self._sizes[length] = sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache)
      )
    return self._sizes[length]

  def _find(self, keys: Sequence[bytes]) -> dict[bytes, Cache]:
    with self._lock:
      found = {key: self._kept[key] for key in keys if key in self._kept}
      for key in found:
        self._kept.move_to_end(key)
    return found

  def _keep(self, new: dict[bytes, Cache]) -> None:
    with self._lock:
      self._kept.update(new)
      size = sum(map(_num_bytes, self._kept.values()))
      while self._kept and size > self._most_bytes:
        _, oldest = self._kept.popitem(last=False)
        size -= _num_bytes(oldest)


def _num_bytes(cache: Cache) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(cache))


@functools.partial(jax.jit, static_argnames='length')
def _take(cache: Cache, row: Any, *, length: int) -> Cache:
  """One row of a cache, cut to its first slots."""
  return cache.row(row, length)


@functools.partial(jax.jit, static_argnames=('num_rows', 'length'))
def _empty(like: Cache, *, num_rows: int, length: int) -> Cache:
  """A cache of empty slots."""
  return like.emptied(num_rows, length)


@functools.partial(jax.jit, static_argnames='length')
def _widen(cache: Cache, *, length: int) -> Cache:
  """A cache with empty slots up to a length."""
  return cache.with_room(length - cache.positions.shape[1])


@functools.partial(jax.jit, donate_argnums=0)
def _place(whole: Cache, one: Cache, row: Any) -> Cache:
  """Writes the cache of one row into one of many, from the first slot on."""
  return whole.with_row(one, row)
