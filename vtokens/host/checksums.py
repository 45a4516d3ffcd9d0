"""Checks by size and SHA-256 that files have not changed.

For files on a disk that a program writes once and trusts later. Processors have
instructions for SHA-256: reading takes longer than hashing. docs/performance.md
has the cost.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vtokens.host import writers

_SEAL = 'sha256_of_the_rest'
# More threads do not read a disk faster.
_THREADS = 8


def sha256(path: pathlib.Path) -> str:
  """Hashes a file's content: 64 hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def of_files(
  directory: pathlib.Path, names: Iterable[str]
) -> dict[str, dict[str, Any]]:
  """Measures files in a directory: name -> size in bytes and SHA-256.

  Raises:
    OSError: one cannot be read.
  """
  names = list(names)
  paths = [directory / name for name in names]
  # Hashing releases the interpreter lock.
  with concurrent.futures.ThreadPoolExecutor(_num_threads()) as pool:
    digests = list(pool.map(sha256, paths))
  return {
    name: {'bytes': path.stat().st_size, 'sha256': digest}
    for name, path, digest in zip(names, paths, digests, strict=True)
  }


def problem(
  directory: pathlib.Path, files: Mapping[str, Mapping[str, Any]]
) -> str:
  """Compares files with their checksums.

  Args:
    directory: where the files are.
    files: result of `of_files`. Of an entry without `sha256`, only the size is
      compared.

  Returns:
    The first problem, or '' if there is none.
  """
  for name, file in files.items():
    path = directory / name
    if not path.is_file():
      return f'{name} is missing, expected {file["bytes"]:,} bytes'
    size = path.stat().st_size
    if size != file['bytes']:
      return f'{name} has {size:,} bytes, expected {file["bytes"]:,} bytes'
  names = [name for name, file in files.items() if 'sha256' in file]
  # Start with the largest: others are done meanwhile.
  names.sort(key=lambda name: -files[name]['bytes'])
  with (
    concurrent.futures.ThreadPoolExecutor(_num_threads()) as pool,
    writers.progress(
      desc=f'checking {directory.name}',
      total=sum(files[name]['bytes'] for name in names),
      unit='B',
      unit_scale=True,
      leave=False,
      delay=2,
    ) as bar,
  ):
    digests = pool.map(sha256, [directory / name for name in names])
    try:
      for name, digest in zip(names, digests, strict=True):
        if digest != files[name]['sha256']:
          pool.shutdown(cancel_futures=True)
          return f'the content of {name} has changed since it was written'
        bar.update(files[name]['bytes'])
    except OSError as e:
      return f'a file cannot be read: {e}'
  return ''


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
  """Adds to JSON values their own SHA-256; see `is_sealed`."""
  return {**values, _SEAL: _digest(values)}


def has_seal(values: Mapping[str, Any]) -> bool:
  """Whether values have a seal; earlier versions wrote none."""
  return _SEAL in values


def is_sealed(values: Mapping[str, Any]) -> bool:
  """Whether sealed JSON values are unchanged."""
  return values.get(_SEAL) == _digest(without_seal(values))


def without_seal(values: Mapping[str, Any]) -> dict[str, Any]:
  """Removes the seal from sealed values."""
  return {key: value for key, value in values.items() if key != _SEAL}


def _digest(values: Mapping[str, Any]) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _num_threads() -> int:
  return min(_THREADS, os.cpu_count() or 1)
