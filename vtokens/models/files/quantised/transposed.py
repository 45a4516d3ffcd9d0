"""Matrices that files store as `[inputs, outputs]`, with groups of inputs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.stored import Stored

# Values that are dequantised at once; they fit a processor's caches.
_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class Transposed:
  """A matrix `(codes - zeros) * scales`; see `packed.Packed`.

  Readers get inputs, or groups of them, and then outputs.

  Attributes:
    shape: outputs and inputs.
    parts: see `packed.Packed`.
    about: see `packed.Packed`.
    codes: reads codes.
    scales: reads the factors of groups.
    zeros: reads the zero points of groups.
    size: inputs in a group.
    order: group of each input; None for groups of neighbours.
  """

  shape: tuple[int, ...]
  parts: tuple[Stored, ...]
  about: str
  codes: packed.Reader
  scales: packed.Reader
  zeros: packed.Reader
  size: int
  order: Stored | None = None

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """See `packed.Packed`; a view of an array [inputs, outputs]."""
    rows = slice(*rows.indices(self.shape[0]))
    columns = slice(*columns.indices(self.shape[1]))
    if self.order is None:
      places = np.arange(columns.start, columns.stop) // self.size
    else:
      places = self.order.read(columns)
    groups = slice(int(places.min()), int(places.max()) + 1)
    places = places - groups.start
    scales, zeros = self.scales(groups, rows), self.zeros(groups, rows)
    values = np.empty((len(places), rows.stop - rows.start), np.float32)
    step = max(1, _CHUNK // values.shape[1])
    for start in range(0, len(places), step):
      part = values[start : start + step]
      among = places[start : start + step]
      first = columns.start + start
      codes = self.codes(slice(first, first + len(part)), rows)
      np.subtract(codes, zeros[among], out=part)
      np.multiply(part, scales[among], out=part)
    return values.T


def along_outputs(
  stored: Stored, bits: int, places: Sequence[int]
) -> packed.Reader:
  """Reads numbers that are packed along the outputs.

  Args:
    stored: the words, int32, array of shape [inputs, outputs / in a word].
    bits: bits of a number.
    places: for the numbers in a word, lowest bits first, their outputs.
  """
  each = len(places)

  def read(inputs: slice, outputs: slice) -> np.ndarray:
    first = outputs.start // each
    words = stored.read(inputs, slice(first, -(-outputs.stop // each)))
    values = np.empty((*words.shape, each), np.float32)
    for i, place in enumerate(places):
      values[..., place] = (words >> (bits * i)) & (2**bits - 1)
    start = outputs.start - first * each
    stop = start + outputs.stop - outputs.start
    return values.reshape(len(words), -1)[:, start:stop]

  return read


def along_inputs(stored: Stored, bits: int) -> packed.Reader:
  """Reads numbers that are packed along the inputs, lowest bits first.

  Args:
    stored: the words, int32, array of shape [inputs / in a word, outputs].
    bits: bits of a number.
  """
  each = 32 // bits

  def read(inputs: slice, outputs: slice) -> np.ndarray:
    first = inputs.start // each
    words = stored.read(slice(first, -(-inputs.stop // each)), outputs)
    values = np.empty((len(words) * each, words.shape[1]), np.float32)
    for i in range(each):
      values[i::each] = (words >> (bits * i)) & (2**bits - 1)
    start = inputs.start - first * each
    return values[start : start + inputs.stop - inputs.start]

  return read


def floats(stored: Stored) -> packed.Reader:
  """Reads a matrix of floats."""

  def read(inputs: slice, outputs: slice) -> np.ndarray:
    return packed.as_float(stored.read(inputs, outputs))

  return read
