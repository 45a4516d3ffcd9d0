"""Checks the header of a GGUF file before its numbers are used.

The gguf package makes as many objects as the header claims, even past the end
of the file. Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

import mmap
import os
import struct

from vtokens.host import errors

_STRING, _ARRAY = 8, 9
# Bytes of each type of fixed size.
_SIZES = dict(
  zip((*range(8), 10, 11, 12), (1, 1, 2, 2, 4, 4, 4, 1, 8, 8, 8), strict=True)
)
_MAX_DIMENSIONS = 4
# Deepest nesting of arrays; no known field nests them.
_MAX_DEPTH = 4


def check(path: str | os.PathLike[str]) -> None:
  """Walks through metadata and descriptions of tensors.

  Raises:
    errors.UserError: the file is missing, is not GGUF of a supported version,
      or a value extends past its end.
  """
  try:
    if not os.path.isfile(path):
      what = 'is no regular file' if os.path.exists(path) else 'not found'
      raise errors.UserError(f'{path}: {what}')
    with (
      open(path, 'rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
      _walk(data, str(path))
  except (OSError, ValueError, struct.error) as e:
    raise errors.UserError(f'{path}: not a readable GGUF file ({e})') from None


def _walk(data: mmap.mmap, path: str) -> None:
  magic, version, tensors, fields = struct.unpack_from('<4sIQQ', data)
  if magic == b'GGUF' and version in (2 << 24, 3 << 24):
    raise errors.UserError(f'{path}: big-endian GGUF is not supported')
  if magic != b'GGUF' or version not in (2, 3):
    raise ValueError(f'magic {magic!r}, version {version}; expected 2 or 3')
  at = struct.calcsize('<4sIQQ')
  for _ in range(fields):
    at = _text(data, at)
    (kind,) = struct.unpack_from('<I', data, at)
    at = _value(data, at + 4, kind, 0)
  for _ in range(tensors):
    at = _text(data, at)
    (dimensions,) = struct.unpack_from('<I', data, at)
    if dimensions > _MAX_DIMENSIONS:
      raise ValueError(f'a tensor of {dimensions} dimensions at byte {at}')
    # The tensor's type and offset.
    at = _within(data, at + 4 + 8 * dimensions + 4 + 8)


def _text(data: mmap.mmap, at: int) -> int:
  (size,) = struct.unpack_from('<Q', data, at)
  return _within(data, at + 8 + size)


def _value(data: mmap.mmap, at: int, kind: int, depth: int) -> int:
  """The byte after the value at byte `at`."""
  if kind in _SIZES:
    return _within(data, at + _SIZES[kind])
  if kind == _STRING:
    return _text(data, at)
  if kind != _ARRAY or depth == _MAX_DEPTH:
    raise ValueError(f'a value of type {kind} at byte {at}')
  inner, size = struct.unpack_from('<IQ', data, at)
  at += 12
  if inner in _SIZES:
    return _within(data, at + size * _SIZES[inner])
  for _ in range(size):
    at = _value(data, at, inner, depth + 1)
  return at


def _within(data: mmap.mmap, at: int) -> int:
  if at > len(data):
    raise ValueError(f'it ends at byte {len(data)}, its header at byte {at}')
  return at
