"""The trained virtual tokens of a run as a file. Needs no JAX.

Kind   file                      holds
table  table.safetensors         rows of input embeddings, see `table_file`
kv     keys_values.safetensors   `keys` (before rotation) and `values`, each of
                                 shape [L, P, K, H] with its own H, float32
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vtokens import config
from vtokens.host import errors
from vtokens.serving import table_file

# File of each kind in a work directory.
NAMES: Mapping[config.Kind, str] = {
  'table': 'table.safetensors',
  'kv': 'keys_values.safetensors',
}
# What messages call them.
WORDS: Mapping[config.Kind, str] = {
  'table': 'a table',
  'kv': 'keys and values',
}
_TENSORS = ('keys', 'values')

# A table, or a dict of keys and values.
Trained = Any


def save(
  path: epath.PathLike, trained: Trained, metadata: Mapping[str, object]
) -> None:
  """Writes trained values, whole or not at all.

  Args:
    path: the file.
    trained: a table, or keys and values; numpy arrays, float32.
    metadata: JSON values, e.g. the base's fingerprint.
  """
  if isinstance(trained, Mapping):
    table_file.write_tensors(path, trained, metadata)
  else:
    table_file.save(path, trained, metadata)


def load(
  path: epath.PathLike, kind: config.Kind
) -> tuple[Trained, dict[str, object]]:
  """Reads what `save` wrote.

  Args:
    path: the file.
    kind: what it holds.

  Returns:
    The values and the metadata.

  Raises:
    errors.UserError: the file is missing, or holds no finite values of this
      kind.
  """
  if kind == 'table':
    return table_file.load(path)
  what = 'keys and values of virtual tokens'
  found, metadata = table_file.read_tensors(path, _TENSORS, what, ndim=4)
  keys, values = (list(found[name].shape) for name in _TENSORS)
  if keys[:-1] != values[:-1]:
    raise errors.UserError(
      f'{path}: keys of shape {keys} and values of shape {values}, expected '
      'shapes that differ in the last number alone'
    )
  return found, metadata


def count(trained: Trained) -> int:
  """Returns the number of virtual tokens."""
  if isinstance(trained, Mapping):
    return int(trained['keys'].shape[1])
  return len(trained)


def shape(trained: Trained) -> tuple[int, ...]:
  """Returns the shape of the table, or of the keys.

  Values have the same shape, but their width may differ.
  """
  array = trained['keys'] if isinstance(trained, Mapping) else trained
  found: tuple[int, ...] = array.shape
  return found


def sha256(trained: Trained) -> str:
  """Returns the SHA-256 of the values; see `table_file.sha256`.

  That of keys and values is of their bytes, float32, little-endian, keys first.
  """
  if not isinstance(trained, Mapping):
    return table_file.sha256(trained)
  digest = hashlib.sha256()
  for name in _TENSORS:
    digest.update(np.ascontiguousarray(trained[name], '<f4').tobytes())
  return digest.hexdigest()


def check_shape(
  trained: Trained,
  path: epath.PathLike,
  base: str,
  *,
  width: int,
  heads: tuple[int, int],
  widths: tuple[int, int],
) -> None:
  """Raises unless trained values have the shape that a base needs.

  Args:
    trained: the values.
    path: where they are from.
    base: the base, as the config names it.
    width: width of its embeddings.
    heads: number of its layers, and of its key-value heads.
    widths: widths of a key and of a value.

  Raises:
    errors.UserError: the shape does not fit the base.
  """
  if not isinstance(trained, Mapping):
    table_file.check_width(trained, path, base, width)
    return
  for name, last in zip(_TENSORS, widths, strict=True):
    found = list(trained[name].shape)
    expected = [heads[0], found[1], heads[1], last]
    if found != expected:
      raise errors.UserError(
        f'{path}: holds {name} of shape {found}, expected {expected}, as '
        f'{base} has them: they are of another base'
      )
