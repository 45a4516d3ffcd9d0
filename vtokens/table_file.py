"""A table of virtual tokens as a file. Needs no JAX."""

import hashlib
import json

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from vtokens import errors, paths, writers

TENSOR = 'virtual_tokens'


def save(
  path: epath.PathLike, table: np.ndarray, metadata: dict[str, object]
) -> None:
  """Writes the table as safetensors, whole or not at all.

  Args:
    path: the file.
    table: `P D` f32.
    metadata: JSON values, e.g. the base's fingerprint.
  """
  data = safetensors.numpy.save(
    {TENSOR: np.ascontiguousarray(table, np.float32)},
    metadata={key: json.dumps(value) for key, value in metadata.items()},
  )
  writers.write_bytes(path, data)


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
  with paths.reading(path):
    data = epath.Path(path).read_bytes()
  try:
    table = safetensors.numpy.load(data)[TENSOR]
    # Only of a file on disk does the library give the metadata, which is an
    # entry of the JSON that follows its length.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    metadata = {
      key: json.loads(value)
      for key, value in header.get('__metadata__', {}).items()
    }
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
  return table, metadata


def sha256(table: np.ndarray) -> str:
  """Hash of a table's values (f32, little-endian, row by row)."""
  data = np.ascontiguousarray(table, np.dtype('<f4')).tobytes()
  return hashlib.sha256(data).hexdigest()
