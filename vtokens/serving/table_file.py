"""A table of virtual tokens as a file. Needs no JAX."""

import hashlib
import json
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
  path: epath.PathLike, table: np.ndarray, metadata: dict[str, object]
) -> None:
  """Writes the table as safetensors, whole or not at all.

  Equal arguments give equal bytes.

  Args:
    path: the file.
    table: `P D` f32.
    metadata: JSON values, e.g. the base's fingerprint.
  """
  data = safetensors.numpy.save(
    {TENSOR: np.ascontiguousarray(table, np.float32)},
    metadata={key: json.dumps(value) for key, value in metadata.items()},
  )
  # The library writes the metadata in an order of chance.
  header, tensors = _split(data, str(path))
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  size = len(text).to_bytes(8, 'little')
  writers.write_bytes(path, size + text + tensors)


def _split(data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
  """Header and tensors of a file of safetensors.

  https://github.com/huggingface/safetensors#format: the length of the header
  as 8 bytes, that header, which is JSON, and the tensors.
  """
  end = 8 + int.from_bytes(data[:8], 'little')
  return json_files.parse(data[8:end], f'{where}: its header'), data[end:]


def load(path: epath.PathLike) -> tuple[np.ndarray, dict[str, object]]:
  """Reads what `save` wrote.

  Returns:
    The table, `P D` f32, and the metadata.

  Raises:
    errors.UserError: the file is missing, is no safetensors file, or holds
      no finite f32 table.
  """
  if not paths.exists(epath.Path(path)):
    raise errors.UserError(f'{path}: not found')
  paths.check_file(path, _LARGEST)
  with paths.reading(path):
    data = epath.Path(path).read_bytes()
  try:
    table = safetensors.numpy.load(data)[TENSOR]
    # Only of a file on disk does the library give the metadata, which is an
    # entry of the JSON that follows its length.
    header, _ = _split(data, str(path))
  except (safetensors.SafetensorError, KeyError, ValueError) as e:
    raise errors.UserError(
      f'{path}: not a table of virtual tokens ({e})'
    ) from None
  if table.ndim != 2 or table.dtype != np.float32:
    raise errors.UserError(
      f'{path}: expected a f32 table of two dimensions, got {table.dtype} '
      f'{list(table.shape)}'
    )
  if not np.isfinite(table).all():
    raise errors.UserError(f'{path}: the table holds NaN or infinity')
  metadata = {
    key: json_files.parse(value, f'{path}: {key} in its metadata', object)
    for key, value in header.get('__metadata__', {}).items()
  }
  return table, metadata


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
