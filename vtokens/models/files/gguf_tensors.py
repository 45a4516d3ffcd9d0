"""Tensors of a GGUF file: their shapes, their values, and tensors in parts."""

from collections.abc import Sequence

import gguf
import numpy as np

from vtokens.host import errors


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  """Shape of a tensor; GGUF lists dimensions fastest first."""
  return tuple(int(size) for size in reversed(tensor.shape))


def dequantised(
  tensor: gguf.ReaderTensor, data: np.ndarray, where: str
) -> np.ndarray:
  """Some of a tensor's data in float32.

  Args:
    tensor: the tensor.
    data: rows of its data.
    where: path of the file.

  Raises:
    errors.UserError: the gguf package cannot read the tensor's type.
  """
  try:
    return gguf.dequantize(data, tensor.tensor_type)
  except NotImplementedError as e:
    raise errors.UserError(
      f'{where}: tensor {tensor.name} is quantised as '
      f'{tensor.tensor_type.name}, which the gguf package cannot read ({e})'
    ) from None


class Joined:
  """A matrix whose rows are in several tensors; see `gguf_stored.Part`.

  Args:
    parts: the tensors, of shape [B, R, C], or [B, C, R] if they are turned: R
      rows of each of B blocks.
    turned: whether each one is turned.
    where: path of the file.

  Attributes:
    parts: the tensors.
    shape: shape of the matrix.

  Raises:
    errors.UserError: the shapes do not fit together.
  """

  def __init__(
    self,
    parts: Sequence[gguf.ReaderTensor],
    turned: Sequence[bool],
    where: str,
  ):
    self.parts = parts
    self._turned = turned
    self._where = where
    shapes = [shape_of(part) for part in parts]
    whole = [
      (shape[0], *(shape[:0:-1] if turn else shape[1:]))
      for shape, turn in zip(shapes, turned, strict=True)
    ]
    ends = {(len(shape), shape[0], shape[-1]) for shape in whole}
    if {rank for rank, *_ in ends} != {3} or len(ends) > 1:
      names = ' and '.join(part.name for part in parts)
      found = ' and '.join(str(list(shape)) for shape in shapes)
      raise errors.UserError(
        f'{where}: tensors {names} have the shapes {found}, which do not fit '
        'together'
      )
    ((_, blocks, columns),) = ends
    self._height = sum(rows for _, rows, _ in whole)
    self.shape = (blocks * self._height, columns)

  def read(self, rows: slice) -> np.ndarray:
    """Some rows, all columns, float32."""
    start, stop, _ = rows.indices(self.shape[0])
    first, last = start // self._height, -(-stop // self._height)
    blocks = []
    for part, turn in zip(self.parts, self._turned, strict=True):
      some = dequantised(part, part.data[first:last], self._where)
      blocks.append(some.swapaxes(1, 2) if turn else some)
    matrix = np.concatenate(blocks, axis=1).reshape(-1, self.shape[1])
    first *= self._height
    return matrix[start - first : stop - first]
