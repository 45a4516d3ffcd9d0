"""Directories that say what they hold, and are complete or visibly not.

A directory gets `identity.json` before its first other file, and
`complete.json`, with the size of every file, after its last. Parts of it are
written beside their place and renamed, so that a part that is there is whole.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from vtokens import errors, json_files, schema, writers

_IDENTITY = 'identity.json'
_COMPLETE = 'complete.json'
_PARTIAL = '.partial'


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other processes of this machine out of a directory meanwhile.

  Raises:
    errors.UserError: it cannot be written.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / '.lock').touch()
  except OSError as e:
    raise errors.UserError(f'{directory}: cannot be written: {e}') from e
  with open(directory / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      writers.say(f'{directory}: another run is at work here; waiting for it')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


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
    if directory.exists() and any(directory.iterdir()):
      raise errors.UserError(
        f'{directory}: is not empty and holds no {what}; choose another '
        'directory'
      )
    writers.write_json(path, identity)
    return False
  problem = _difference(directory, identity, what) or _damage(directory, what)
  if problem:
    if not rebuild:
      raise errors.UserError(f'{problem}\n{advice}')
    writers.say(f'{problem}\nbuilding it again')
    shutil.rmtree(directory)
    writers.write_json(path, identity)
    return False
  for leftover in directory.rglob(f'*{_PARTIAL}*'):
    remove(leftover)
  return (directory / _COMPLETE).exists()


def finish(directory: pathlib.Path, info: dict[str, Any] | None = None) -> None:
  """Marks a directory as complete, with facts for `read_info`."""
  files = {
    str(path.relative_to(directory)): path.stat().st_size
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }
  writers.write_json(
    directory / _COMPLETE, {'info': info or {}, 'files': files}
  )


def read_info(directory: pathlib.Path) -> dict[str, Any]:
  """What `finish` was given."""
  return _read(directory / _COMPLETE)['info']


def read_identity(directory: pathlib.Path) -> dict[str, Any]:
  """What the directory was claimed for."""
  return _read(directory / _IDENTITY)


def num_bytes(directory: pathlib.Path) -> int:
  """Size of a complete directory's files, in bytes."""
  return sum(_read(directory / _COMPLETE)['files'].values())


@contextlib.contextmanager
def new_part(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write a file or a directory to; it becomes `path` at the end.

  If another worker has made `path` in the meantime, that one stays: both are
  the same.
  """
  partial = path.with_name(f'{path.name}{_PARTIAL}-{uuid.uuid4().hex}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    if partial.is_dir() and path.exists():
      return
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


def _damage(directory: pathlib.Path, what: str) -> str:
  complete = directory / _COMPLETE
  if not complete.exists():
    return ''
  for name, size in _read(complete)['files'].items():
    path = directory / name
    found = path.stat().st_size if path.exists() else None
    if found != size:
      state = 'is missing' if found is None else f'has {found:,} bytes'
      return (
        f'{directory} holds {what}, damaged: {name} {state}, expected '
        f'{size:,} bytes'
      )
  return ''


def _read(path: pathlib.Path) -> dict[str, Any]:
  shape = (
    {'info': dict, 'files': {str: int}} if path.name == _COMPLETE else dict
  )
  advice = f'delete {path.parent} to make it again'
  return json_files.read(path, shape, advice)


def remove(path: pathlib.Path) -> None:
  """Deletes a file or a directory, if it is there."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
