"""Maps parameters to parts of stored tensors."""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array

# Bytes per read. The host holds them in addition to the shard that it fills.
BLOCK_BYTES = 64 << 20

# Rows and columns of a tile to transpose, and the number of threads.
_TILE = 128
_THREADS = min(16, os.cpu_count() or 1)

EVERY = slice(None)


class TensorSource(Protocol):
  """Named tensors of one model, under their Hugging Face names."""

  where: str

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor."""

  def nbytes(self, name: str) -> int:
    """Stored size of a tensor in bytes."""

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """Part of a tensor, in 16 or 32-bit float.

    Args:
      name: name of the tensor.
      rows: along the first axis. Of a tensor of rank 3 the first two axes count
        as one. All rows are of one matrix, unless each matrix has one row.
      columns: along the last axis; needs rank 2 or 3.
    """

  def sample(self, name: str) -> bytes:
    """A small, fixed part of the stored bytes, for the fingerprint."""


def spread(data: np.ndarray, pieces: int = 16, width: int = 256) -> bytes:
  """Evenly spaced pieces of a byte array, as a cheap sample of its content."""
  starts = np.linspace(0, max(0, data.size - width), pieces, dtype=np.int64)
  return b''.join(data[start : start + width].tobytes() for start in starts)


@dataclasses.dataclass(frozen=True)
class Weight:
  """Stored tensors of one parameter.

  Attributes:
    names: name of the tensor, for each layer.
    stacked: whether the parameter has a leading axis of layers.
    shape: shape of one layer's parameter.
    stored: its shape in the file, without the rows of other parameters in the
      same tensor; () for a tensor without axes.
    inputs: number of the parameter's leading axes that are merged into the
      tensor's second axis; 0 if the tensor is not transposed.
    first_row: the parameter's first row in each group of the tensor's rows.
    groups: number of groups of rows. Each group has a part of each of the
      tensor's parameters, one parameter after the other.
    tensor_rows: rows of the tensor, of all its parameters.
  """

  names: tuple[str, ...]
  stacked: bool
  shape: tuple[int, ...]
  stored: tuple[int, ...]
  inputs: int
  first_row: int
  groups: int
  tensor_rows: int

  def whole_shape(self) -> tuple[int, ...]:
    """Shape of a whole tensor."""
    return (self.tensor_rows, *self.stored[1:]) if self.stored else ()

  @property
  def layers(self) -> int:
    """Number of layers that the parameter has."""
    return len(self.names)

  def read(
    self,
    source: TensorSource,
    layer: int,
    index: tuple[slice, ...],
    out: np.ndarray,
    progress: Callable[[int], Any],
  ) -> None:
    """Reads a slice of one layer's parameter into an array.

    Args:
      source: source of the tensors.
      layer: index of the layer; 0 for a parameter that is not stacked.
      index: one slice for each axis of `shape`. Together they must be a block
        of rows and columns of the stored tensor.
      out: contiguous array of the slice's shape and any dtype, to be filled.
      progress: called with the number of stored bytes just read.
    """
    name = self.names[layer]
    if not self.stored:
      out[...] = source.read(name)
      progress(source.nbytes(name))
      return
    # Axes before `split` are the columns of a transposed tensor, else the rows.
    split = self.inputs or 1
    first, second = index[:split], index[split:]
    sizes = self.shape[:split], self.shape[split:]
    if self.inputs:
      columns, rows = _span(first, sizes[0]), _span(second, sizes[1])
    elif len(self.stored) > 1:
      rows, columns = _span(first, sizes[0]), _span(second, sizes[1])
    else:
      rows, columns = _span(index, self.shape), slice(0, 1)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    # A view, so that filling it fills `out`.
    flat = out.reshape((width, height) if self.inputs else (height, width))
    total = math.prod(source.shapes()[name])
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, height, step):
      stop = min(start + step, height)
      parts = [
        source.read(name, part, columns)
        for part in self._places(rows.start + start, rows.start + stop)
      ]
      block = parts[0] if len(parts) == 1 else np.concatenate(parts)
      block = block.reshape(stop - start, width)
      if self.inputs:
        transpose(block, flat[:, start:stop])
      else:
        flat[start:stop] = block
      progress(round(source.nbytes(name) * block.size / total))

  def _places(self, start: int, stop: int) -> list[slice]:
    """Where some of the parameter's rows are in the tensor, in their order."""
    own = self.stored[0] // self.groups
    of_all = self.tensor_rows // self.groups
    places = []
    while start < stop:
      group, row = divmod(start, own)
      count = min(own - row, stop - start)
      first = group * of_all + self.first_row + row
      places.append(slice(first, first + count))
      start += count
    return places

  def write(self, parameter: Array, tensor: int) -> np.ndarray:
    """The part of one tensor; the inverse of `read`.

    Args:
      parameter: the whole parameter.
      tensor: number of the tensor in `names`.
    """
    layer = parameter[tensor] if self.stacked else parameter
    return self.rows_of(np.asarray(layer))

  def join(self, parts: list[np.ndarray]) -> np.ndarray:
    """A whole tensor from the parts of all its parameters, in their order."""
    return fuse(parts, self.groups)

  def rows_of(self, parameter: np.ndarray) -> np.ndarray:
    """The rows to store for one layer's parameter."""
    if self.inputs:
      rows, columns = self.stored
      return np.ascontiguousarray(parameter.reshape(columns, rows).T)
    return parameter.reshape(self.stored)


def fuse(rows: Sequence[np.ndarray], groups: int) -> np.ndarray:
  """The tensor with the rows of several parameters.

  Args:
    rows: for each parameter its rows, as `Weight.write` returns them.
    groups: see `Weight`.
  """
  if len(rows) == 1:
    return rows[0]
  parts = [part.reshape(groups, -1, *part.shape[1:]) for part in rows]
  grouped = np.concatenate(parts, axis=1)
  return grouped.reshape(-1, *grouped.shape[2:])


def transpose(block: np.ndarray, out: np.ndarray) -> None:
  """Fills an array with the transpose of another, cast to its dtype.

  It copies tiles that fit a processor's caches; numpy's copy reaches only
  0.3 GB/s.

  Args:
    block: array of shape [R, C].
    out: array of shape [C, R]; may be a view of a larger array.
  """
  if block.dtype == out.dtype:
    # numpy lets other threads run while it copies integers.
    kind = np.dtype(f'u{block.itemsize}')
    block, out = block.view(kind), out.view(kind)

  def fill(stripe: int) -> None:
    columns = slice(stripe, stripe + _TILE)
    for start in range(0, len(block), _TILE):
      rows = slice(start, start + _TILE)
      out[columns, rows] = block[rows, columns].T

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(fill, range(0, block.shape[1], _TILE)):
      pass


def _span(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """The slice along one stored axis that merges several axes."""
  inner = math.prod(shape[1:])
  if any(
    part.indices(size)[:2] != (0, size)
    for part, size in zip(index[1:], shape[1:], strict=True)
  ):
    raise ValueError(f'{index} of {shape} is no block of the stored tensor')
  start, stop, _ = index[0].indices(shape[0])
  return slice(start * inner, stop * inner)
