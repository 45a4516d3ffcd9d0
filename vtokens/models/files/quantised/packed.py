"""Matrices of which the files hold codes, scales and zero points."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import ml_dtypes
import numpy as np

from vtokens.host import errors
from vtokens.models.files.quantised.stored import Stored

# Reads a part, given by rows and columns, as a new array, float32.
Reader = Callable[[slice, slice], np.ndarray]
FLOATS = ('F32', 'BF16', 'F16')
# Values of the four bits of a float of two exponent bits and one mantissa bit.
_HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_HALF, -_HALF])
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)


class Packed(Protocol):
  """A weight that is dequantised when it is read."""

  @property
  def shape(self) -> tuple[int, ...]:
    """Its shape."""

  @property
  def parts(self) -> tuple[Stored, ...]:
    """The stored tensors that decide its values."""

  @property
  def about(self) -> str:
    """Settings that decide its values, for the fingerprint."""

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """A part of the weight, float32."""


@dataclasses.dataclass(frozen=True)
class Grid:
  """A number for each block of a matrix.

  Attributes:
    read: function from rows and columns of the grid to float32; a grid of one
      row or column may give an array that broadcasts.
    height: rows of the matrix in a block.
    width: columns of the matrix in a block.
    order: for each column of the matrix, its column in the grid; None for
      blocks of neighbours.
  """

  read: Reader
  height: int
  width: int
  order: Stored | None = None

  def apply(
    self,
    operation: np.ufunc,
    values: np.ndarray,
    rows: slice,
    columns: slice,
  ) -> None:
    """Combines values with the numbers of their blocks, in place.

    Args:
      operation: np.add, np.multiply or np.subtract.
      values: part of the matrix, float32, contiguous.
      rows: rows of the part.
      columns: its columns.
    """
    top, bottom = rows.start // self.height, -(-rows.stop // self.height)
    if self.order is not None:
      places = self.order.read(columns)
      first, last = int(places.min()), int(places.max()) + 1
      places = places - first
    else:
      first, last = columns.start // self.width, -(-columns.stop // self.width)
      places = np.arange(columns.start, columns.stop) // self.width - first
    numbers = self.read(slice(top, bottom), slice(first, last))
    if self.height > 1 and len(numbers) > 1:
      numbers = numbers[np.arange(rows.start, rows.stop) // self.height - top]
    if numbers.shape[1] == 1:
      operation(values, numbers, out=values)
    elif (
      self.order is None
      and columns.start % self.width == 0
      and values.shape[1] % self.width == 0
    ):
      blocks = values.reshape(len(values), -1, self.width)
      operation(blocks, numbers[..., None], out=blocks)
    else:
      operation(values, numbers[:, places], out=values)


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A matrix `(codes - zeros) * scales`.

  Attributes:
    shape: see `Packed`.
    parts: see `Packed`.
    about: see `Packed`.
    codes: function from rows and columns to a new contiguous array, float32.
    scales: the factors.
    zeros: the zero points; None if there are none.
  """

  shape: tuple[int, ...]
  parts: tuple[Stored, ...]
  about: str
  codes: Reader
  scales: Grid
  zeros: Grid | None = None

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """See `Packed`."""
    rows = slice(*rows.indices(self.shape[0]))
    columns = slice(*columns.indices(self.shape[1]))
    values = self.codes(rows, columns)
    if self.zeros is not None:
      self.zeros.apply(np.subtract, values, rows, columns)
    self.scales.apply(np.multiply, values, rows, columns)
    return values


def as_float(values: np.ndarray) -> np.ndarray:
  """float32; bytes are exponents of 2, with bias 127."""
  if values.dtype == np.uint8:
    values = values.view(ml_dtypes.float8_e8m0fnu)
  floats: np.ndarray = values.astype(np.float32)
  return floats


def grid_of(
  stored: Stored,
  shape: tuple[int, ...],
  block: tuple[int, int],
  kinds: tuple[str, ...] = FLOATS,
  order: Stored | None = None,
) -> Grid:
  """The grid that a tensor holds.

  Args:
    stored: the tensor, of shape [rows / height, columns / width]; an axis of
      length 1 may be missing.
    shape: shape of the matrix.
    block: height and width of a block.
    kinds: types that the tensor may have.
    order: see `Grid`.

  Raises:
    errors.UserError: the tensor has another type or shape.
  """
  sizes = tuple(-(-s // b) for s, b in zip(shape, block, strict=True))
  shapes = [sizes]
  if sizes[1] == 1:
    shapes.append(sizes[:1])
  if sizes == (1, 1):
    shapes.append(())
  stored.check(kinds, *shapes)
  if order is not None:
    check_order(order, shape[1], sizes[1])

  def read(rows: slice, columns: slice) -> np.ndarray:
    index = (rows, columns)[: len(stored.shape)]
    part = as_float(stored.read(*index))
    height = rows.stop - rows.start
    return part.reshape(height, columns.stop - columns.start)

  return Grid(read, *block, order)


def check_order(order: Stored, columns: int, groups: int) -> None:
  """Checks the groups that columns are in.

  Raises:
    errors.UserError: there is not one for each column, or no such group.
  """
  order.check(('I32', 'I64'), (columns,))
  found = order.read()
  if found.min(initial=0) < 0 or found.max(initial=0) >= groups:
    raise order.fail(
      f'with numbers from {found.min()} to {found.max()}, expected groups from '
      f'0 to {groups - 1}'
    )


def endings(names: tuple[str, ...]) -> tuple[str, ...]:
  """Ends of tensors' names, after a module's."""
  return tuple(f'.{name}' for name in names)


def need(parts: Mapping[str, Stored], name: str) -> Stored:
  """A stored tensor of a weight.

  Args:
    parts: the tensors, by the ends of their names.
    name: the end of a name.

  Raises:
    errors.UserError: it is missing.
  """
  if name not in parts:
    first = next(iter(parts.values()))
    raise errors.UserError(
      f'{first.path}: tensor {first.name} has no {name} beside it'
    )
  return parts[name]


def table_codes(stored: Stored, table: np.ndarray) -> Reader:
  """Reads a matrix of bytes whose values are in a table.

  Args:
    stored: the matrix.
    table: values of all bytes, array of shape [256], float32.
  """

  def read(rows: slice, columns: slice) -> np.ndarray:
    values: np.ndarray = table[stored.read(rows, columns).view(np.uint8)]
    return values

  return read


def packed_codes(stored: Stored, bits: int, table: np.ndarray) -> Reader:
  """Reads a matrix whose rows are packed in bytes or words, lowest bits first.

  Args:
    stored: the packed matrix.
    bits: bits of a value: 2, 4 or 8.
    table: value of each code, float32.
  """
  each = np.dtype(f'{stored.kind[0].lower()}{int(stored.kind[1:]) // 8}')
  factor = each.itemsize * 8 // bits

  def read(rows: slice, columns: slice) -> np.ndarray:
    first = columns.start // factor
    words = slice(first, -(-columns.stop // factor))
    values = unpack(stored.read(rows, words), bits, table)
    start = columns.start - first * factor
    stop = start + columns.stop - columns.start
    return np.ascontiguousarray(values[:, start:stop])

  return read


def unpack(words: np.ndarray, bits: int, table: np.ndarray) -> np.ndarray:
  """Values of packed codes, lowest bits first.

  Args:
    words: array of shape [R, C], of bytes or words.
    bits: bits of a code: 2, 4 or 8.
    table: value of each code, array of shape [2^bits], float32.

  Returns:
    Array of shape [R, C * codes in a word], float32.
  """
  data = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
  values: np.ndarray = _of_bytes(bits, table.tobytes())[data].view(np.float32)
  return values


@functools.lru_cache(maxsize=16)
def _of_bytes(bits: int, table: bytes) -> np.ndarray:
  """The values in each byte, as one number that can be looked up at once."""
  values = np.frombuffer(table, np.float32)
  count = 8 // bits
  codes = np.arange(256)[:, None] >> (bits * np.arange(count)) & 2**bits - 1
  found = np.ascontiguousarray(values[codes])
  kind = {1: np.float32, 2: np.uint64, 4: np.complex128}[count]
  whole: np.ndarray = found.view(kind).reshape(256)
  return whole


def numbers(bits: int, offset: int = 0) -> np.ndarray:
  """Codes as numbers minus an offset, float32."""
  return np.arange(2**bits, dtype=np.float32) - np.float32(offset)


def whole(shape: tuple[int, ...]) -> tuple[int, int]:
  """The block that is the whole matrix."""
  return shape[0], math.prod(shape[1:])
