"""Copies files of safetensors with some tensors changed, one at a time.

The format (https://github.com/huggingface/safetensors#format) is the length of
the header as 8 bytes, the header in JSON, and the bytes of all tensors without
gaps.
"""

import dataclasses
import json
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors

_METADATA = '__metadata__'
# Names of tensors in the metadata that torchao writes. Beside it each tensor
# has an entry of its own.
_LISTED = 'tensor_names'
# Headers are padded with spaces to a multiple of this length.
_ALIGNMENT = 8
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class ChangedTensor:
  """A tensor made from a tensor of the file.

  Attributes:
    of: name of the tensor in the file.
    num_rows: rows of the new tensor; the other dimensions stay.
    make: function from the old to the new tensor.
  """

  of: str
  num_rows: int
  make: Callable[[np.ndarray], np.ndarray]


def rewrite(
  source: pathlib.Path, target: pathlib.Path, made: Mapping[str, ChangedTensor]
) -> None:
  """Copies a file with at most one tensor in memory.

  Args:
    source: the file.
    target: the copy.
    made: changed or new tensors of the copy, by name.
  """
  with source.open('rb') as file:
    (size,) = struct.unpack('<Q', file.read(8))
    before: dict[str, Any] = json.loads(file.read(size))
  metadata = before.pop(_METADATA, {'format': 'pt'})
  _list_tensors(metadata, made)
  header: dict[str, Any] = {_METADATA: metadata}
  end = 0
  for name in dict.fromkeys([*before, *made]):
    old = before[made[name].of if name in made else name]
    begin, stop = old['data_offsets']
    shape, length = list(old['shape']), stop - begin
    if name in made:
      length = length // shape[0] * made[name].num_rows
      shape[0] = made[name].num_rows
    header[name] = {
      'dtype': old['dtype'],
      'shape': shape,
      'data_offsets': [end, end + length],
    }
    end += length
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  with (
    source.open('rb') as file,
    target.open('wb') as copy,
    safetensors.safe_open(source, framework='numpy') as tensors,
  ):
    copy.write(struct.pack('<Q', len(text)) + text)
    for name, entry in header.items():
      if name == _METADATA:
        continue
      if name in made:
        tensor = made[name].make(tensors.get_tensor(made[name].of))
        assert list(tensor.shape) == entry['shape']
        copy.write(np.ascontiguousarray(tensor).view(np.uint8).data)
      else:
        begin, stop = before[name]['data_offsets']
        file.seek(8 + size + begin)
        _copy(file, copy, stop - begin)


def _list_tensors(
  metadata: dict[str, str], made: Mapping[str, ChangedTensor]
) -> None:
  """Adds new tensors to torchao's list, without which it reads none of them.

  Args:
    metadata: of the file; changed in place.
    made: see `rewrite`.
  """
  for name, tensor in made.items():
    if _LISTED in metadata and tensor.of in metadata and name not in metadata:
      names = json.loads(metadata[_LISTED])
      metadata[_LISTED] = json.dumps([*names, name])
      metadata[name] = metadata[tensor.of]


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
  while length:
    data = source.read(min(length, _CHUNK))
    if not data:
      raise EOFError(f'{source.name}: it ends before its last tensor does')
    target.write(data)
    length -= len(data)
