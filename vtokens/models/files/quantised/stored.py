"""Tensors of safetensors files in any of its types, and samples of them."""

import dataclasses
import json
import math
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from vtokens.host import errors

_TYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
  'F8_E8M0': ml_dtypes.float8_e8m0fnu,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file.

  Attributes:
    name: its name in the file.
    path: the file.
    kind: name of its type in safetensors.
    shape: its shape.
    offset: its first byte in the file.
  """

  name: str
  path: pathlib.Path
  kind: str
  shape: tuple[int, ...]
  offset: int

  @property
  def nbytes(self) -> int:
    """Size in bytes."""
    return math.prod(self.shape) * int(np.dtype(_TYPES[self.kind]).itemsize)

  def read(self, *index: slice) -> np.ndarray:
    """Part of the tensor, in its own type.

    The file is mapped for this read alone, because mapped pages count as memory
    of the process.
    """
    dtype = np.dtype(_TYPES[self.kind])
    if not self.nbytes:
      return np.zeros(self.shape, dtype)[index]
    # numpy cannot map the types of ml_dtypes.
    mapped = np.memmap(
      self.path,
      np.dtype(f'u{dtype.itemsize}'),
      'r',
      self.offset,
      self.shape or (1,),
    )
    part = np.array(mapped.reshape(self.shape)[index])
    return part.view(dtype)

  def fail(self, what: str) -> errors.UserError:
    """An error about the tensor."""
    return errors.UserError(
      f'{self.path}: tensor {self.name} is {self.kind} of shape '
      f'{list(self.shape)}, {what}'
    )

  def check(self, kinds: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """Raises unless type and shape are among those given.

    Raises:
      errors.UserError: they are not.
    """
    if self.kind not in kinds or self.shape not in shapes:
      wanted = ' or '.join(str(list(shape)) for shape in dict.fromkeys(shapes))
      raise self.fail(
        f'expected {" or ".join(kinds)} of shape {wanted}: it does not fit the '
        'weight and quantization_config'
      )


def read_header(
  path: pathlib.Path,
) -> tuple[dict[str, Stored], dict[str, str]]:
  """Every tensor of a file that safetensors can open, and its metadata.

  Raises:
    errors.UserError: a tensor has a type that numpy cannot hold.
  """
  with path.open('rb') as file:
    (size,) = struct.unpack('<Q', file.read(8))
    header = json.loads(file.read(size))
  metadata = header.pop('__metadata__', {})
  tensors = {}
  for name, entry in header.items():
    kind = entry['dtype']
    if kind not in _TYPES:
      raise errors.UserError(
        f'{path}: tensor {name} is {kind}, which is not supported; supported: '
        f'{", ".join(_TYPES)}'
      )
    tensors[name] = Stored(
      name,
      path,
      kind,
      tuple(entry['shape']),
      8 + size + entry['data_offsets'][0],
    )
  return tensors, metadata
