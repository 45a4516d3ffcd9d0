"""Directories that say what they hold, and are complete or visibly not.

A directory gets `identity.json` before its first other file, and
`complete.json`, with the size and SHA-256 of every file, after its last. Parts
of it are written beside their place and renamed, so that a part that is there
is whole. Each has its SHA-256 beside it (of a file: `FILE.sha256`) or in it (of
a directory: `SHA256SUMS`), in the format of sha256sum.

`claim` compares all of them. A directory that is not complete loses the parts
that are not as they were written, and work on it makes them again; one that is
complete is refused.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from vtokens.host import checksums, errors, json_files, paths, writers
from vtokens.settings import schema

_IDENTITY = 'identity.json'
_COMPLETE = 'complete.json'
_PARTIAL = '.partial'
_SUMS = 'SHA256SUMS'
_SUM = '.sha256'


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other processes of this machine out of a directory meanwhile.

  Raises:
    errors.NotWrittenError: it cannot be written.
  """
  with paths.writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / '.lock').touch()
  with open(directory / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      writers.say(f'{directory}: another run is at work here; waiting for it')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def check_writable(directory: pathlib.Path) -> None:
  """Makes a directory, and raises if no file can be made in it.

  Raises:
    errors.NotWrittenError: it, or a file in it, cannot be written.
  """
  with paths.writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
      pass


def claim(
  directory: pathlib.Path,
  identity: dict[str, Any],
  what: str,
  *,
  rebuild: bool,
  advice: str,
) -> bool:
  """Takes a directory for what `identity` describes, or recognises it.

  Args:
    directory: need not exist.
    identity: JSON values; what decides the directory's content.
    what: for messages, e.g. 'the index bm25'.
    rebuild: start afresh where the directory is of another identity, or
      damaged. Only a directory that was claimed once is ever deleted.
    advice: how messages end: what to do about it.

  Returns:
    Whether the directory is complete. If not, work on it goes on.

  Raises:
    errors.UserError: it holds something else or is damaged, and `rebuild` is
      off.
  """
  path = directory / _IDENTITY
  if not path.exists():
    # A run may have been killed as it wrote the identity.
    remove(path.with_name(f'{_IDENTITY}{_PARTIAL}'))
    if directory.exists() and any(directory.iterdir()):
      raise errors.UserError(
        f'{directory}: is not empty and does not hold {what}; choose '
        'another directory'
      )
    writers.write_json(path, identity)
    return False
  complete = (directory / _COMPLETE).exists()
  problem = (
    _damage(directory, what, [_IDENTITY])
    or _difference(directory, identity, what)
    or _damage(directory, what)
  )
  if problem:
    if not rebuild:
      raise errors.UserError(f'{problem}\n{advice}')
    writers.say(f'{problem}\nbuilding it again')
    shutil.rmtree(directory)
    writers.write_json(path, identity)
    return False
  for leftover in directory.rglob(f'*{_PARTIAL}*'):
    remove(leftover)
  if not complete:
    _remove_damaged_parts(directory)
  elif not checksums.has_seal(_read(directory / _COMPLETE)):
    writers.say(
      f'{directory}: an earlier version of vtokens made it, without checksums: '
      'only the sizes of its files were compared. Checksums are kept from now '
      'on; delete it to have it made again'
    )
    finish(directory, read_info(directory))
  return complete


def finish(directory: pathlib.Path, info: dict[str, Any] | None = None) -> None:
  """Marks a directory as complete, with facts for `read_info`."""
  names = [
    str(path.relative_to(directory))
    for path in sorted(directory.rglob('*'))
    if path.is_file() and path != directory / _COMPLETE
  ]
  files = checksums.of_files(directory, names)
  content = {
    'info': info or {},
    'files': {name: file['bytes'] for name, file in files.items()},
    'sha256': {name: file['sha256'] for name, file in files.items()},
  }
  writers.write_json(directory / _COMPLETE, checksums.seal(content))


def read_info(directory: pathlib.Path) -> dict[str, Any]:
  """What `finish` was given."""
  info: dict[str, Any] = _read(directory / _COMPLETE)['info']
  return info


def is_claimed(directory: pathlib.Path) -> bool:
  """Whether a directory says what it is of."""
  return (directory / _IDENTITY).exists()


def read_identity(directory: pathlib.Path) -> dict[str, Any]:
  """What the directory was claimed for."""
  return _read(directory / _IDENTITY)


def identity_if_there(directory: pathlib.Path) -> dict[str, Any]:
  """Likewise; nothing where it was not claimed yet."""
  there = (directory / _IDENTITY).exists()
  return read_identity(directory) if there else {}


def num_bytes(directory: pathlib.Path) -> int:
  """Size of a complete directory's files, in bytes."""
  return sum(_read(directory / _COMPLETE)['files'].values())


@contextlib.contextmanager
def new_part(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write a file or a directory to; it becomes `path` at the end.

  It gets its SHA-256. If another worker has made `path` in the meantime, that
  one stays: both are the same.
  """
  partial = path.with_name(f'{path.name}{_PARTIAL}-{uuid.uuid4().hex}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    if partial.is_dir():
      if path.exists():
        return
      (partial / _SUMS).write_text(_sums(partial))
    else:
      sums = path.with_name(path.name + _SUM)
      sums.write_text(f'{checksums.sha256(partial)}  {path.name}\n')
    os.replace(partial, path)
  finally:
    remove(partial)


def _difference(
  directory: pathlib.Path, identity: dict[str, Any], what: str
) -> str:
  lines = schema.diff(
    _read(directory / _IDENTITY), json.loads(json.dumps(identity)), ''
  )
  if not lines:
    return ''
  return f'{directory} holds {what} made of something else:' + errors.lines(
    lines
  )


def _damage(
  directory: pathlib.Path, what: str, names: Sequence[str] | None = None
) -> str:
  """What of a complete directory is not as it was written, '' for nothing.

  Args:
    directory: maybe complete.
    what: it holds, for the message.
    names: of files to look at; None for all.
  """
  path = directory / _COMPLETE
  if not path.exists():
    return ''
  content = _read(path)
  sizes, digests = content['files'], content.get('sha256', {})
  if checksums.has_seal(content) and not checksums.is_sealed(content):
    problem = f'the content of {_COMPLETE} has changed since it was written'
  else:
    problem = checksums.problem(
      directory,
      {
        name: {'bytes': sizes[name]}
        | ({'sha256': digests[name]} if name in digests else {})
        for name in (sizes if names is None else names)
        if name in sizes
      },
    )
  return problem and f'{directory} holds {what}, damaged: {problem}'


def _remove_damaged_parts(directory: pathlib.Path) -> None:
  """Removes the parts of a directory that are not as they were written."""
  damaged = [
    path.parent
    for path in directory.rglob(_SUMS)
    if path.read_bytes() != _sums(path.parent).encode()
  ]
  for sums in directory.rglob(f'*{_SUM}'):
    path = sums.with_suffix('')
    expected = (
      f'{checksums.sha256(path)}  {path.name}\n' if path.exists() else ''
    )
    if expected and sums.read_bytes() != expected.encode():
      damaged.append(path)
  for path in damaged:
    writers.say(f'{path}: not as it was written; making it again')
    remove(path)


def _sums(directory: pathlib.Path) -> str:
  """SHA-256 of the files of a directory, as sha256sum prints them."""
  names = sorted(
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file() and path.name != _SUMS
  )
  files = checksums.of_files(directory, names)
  return ''.join(f'{files[name]["sha256"]}  {name}\n' for name in names)


def _read(path: pathlib.Path) -> dict[str, Any]:
  shape = (
    {'info': dict, 'files': {str: int}} if path.name == _COMPLETE else dict
  )
  advice = f'delete {path.parent} to make it again'
  found: dict[str, Any] = json_files.read(path, shape, advice)
  return found


def remove(path: pathlib.Path) -> None:
  """Deletes a file with its SHA-256, or a directory, if it is there."""
  path.with_name(path.name + _SUM).unlink(missing_ok=True)
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
