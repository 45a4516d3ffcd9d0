"""A table of virtual tokens as a file. Needs no JAX."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from vtokens.host import errors, json_files, paths, writers

TENSOR = 'virtual_tokens'
# Bytes of a file: 16,384 tokens of as many numbers.
_LARGEST = 1 << 30
# Headers are filled up with spaces to a multiple of it.
_ALIGNMENT = 8


def save(
  path: epath.PathLike, table: np.ndarray, metadata: Mapping[str, object]
) -> None:
  """Writes a table as safetensors, whole or not at all.

  Args:
    path: the file.
    table: array of shape [P, D], float32.
    metadata: JSON values, e.g. the base's fingerprint.
  """
  write_tensors(path, {TENSOR: table}, metadata)


def load(path: epath.PathLike) -> tuple[np.ndarray, dict[str, object]]:
  """Reads what `save` wrote.

  Returns:
    The table, an array of shape [P, D], float32, and the metadata.

  Raises:
    errors.UserError: the file is missing, is no safetensors file, or holds
      no finite f32 table.
  """
  what = 'a table of virtual tokens'
  tensors, metadata = read_tensors(path, [TENSOR], what, ndim=2)
  return tensors[TENSOR], metadata


def write_tensors(
  path: epath.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, object],
) -> None:
  """Writes float32 arrays as safetensors, whole or not at all.

  Equal arguments give equal bytes.

  Args:
    path: the file.
    tensors: arrays by name.
    metadata: JSON values.
  """
  data = safetensors.numpy.save(
    {
      name: np.ascontiguousarray(tensor, np.float32)
      for name, tensor in tensors.items()
    },
    metadata={key: json.dumps(value) for key, value in metadata.items()},
  )
  # The library writes the metadata in an order of chance.
  header, rest = _split(data, str(path))
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  size = len(text).to_bytes(8, 'little')
  writers.write_bytes(path, size + text + rest)


def _split(data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
  """Header and tensors of a file of safetensors.

  https://github.com/huggingface/safetensors#format: the length of the header
  as 8 bytes, that header, which is JSON, and the tensors.
  """
  end = 8 + int.from_bytes(data[:8], 'little')
  return json_files.parse(data[8:end], f'{where}: its header'), data[end:]


def read_tensors(
  path: epath.PathLike, names: Sequence[str], what: str, *, ndim: int
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
  """Reads what `write_tensors` wrote.

  Args:
    path: the file.
    names: names of the arrays to read.
    what: what they are together, for messages.
    ndim: number of dimensions of each.

  Returns:
    The arrays by name, float32, and the metadata.

  Raises:
    errors.UserError: the file is missing, is no safetensors file, or lacks a
      finite f32 array of these names and dimensions.
  """
  if not paths.exists(epath.Path(path)):
    raise errors.UserError(f'{path}: not found')
  paths.check_file(path, _LARGEST)
  with paths.reading(path):
    data = epath.Path(path).read_bytes()
  try:
    everything = safetensors.numpy.load(data)
    tensors = {name: everything[name] for name in names}
    # Only of a file on disk does the library give the metadata, which is an
    # entry of the JSON that follows its length.
    header, _ = _split(data, str(path))
  except (safetensors.SafetensorError, KeyError, ValueError) as e:
    raise errors.UserError(f'{path}: not {what} ({e})') from None
  for tensor in tensors.values():
    if tensor.ndim != ndim or tensor.dtype != np.float32:
      raise errors.UserError(
        f'{path}: expected {what}, f32 with {ndim} dimensions, got '
        f'{tensor.dtype} {list(tensor.shape)}'
      )
    if not np.isfinite(tensor).all():
      raise errors.UserError(f'{path}: {what} with NaN or infinity')
  metadata = {
    key: json_files.parse(value, f'{path}: {key} in its metadata', object)
    for key, value in header.get('__metadata__', {}).items()
  }
  return tensors, metadata


def check_width(
  table: np.ndarray, path: epath.PathLike, base: str, width: int
) -> None:
  """Raises unless a table is as wide as the embeddings of a base.

  Args:
    table: `P D`.
    path: where it is from.
    base: the base, as the config names it.
    width: of its embeddings.

  Raises:
    errors.UserError: it is not.
  """
  if table.shape[1] != width:
    raise errors.UserError(
      f'{path}: holds a table of shape {list(table.shape)}, expected a width '
      f'of {width}, that of the embeddings of {base}: it is of another base'
    )


def sha256(table: np.ndarray) -> str:
  """Hash of a table's values (f32, little-endian, row by row)."""
  data = np.ascontiguousarray(table, np.dtype('<f4')).tobytes()
  return hashlib.sha256(data).hexdigest()
