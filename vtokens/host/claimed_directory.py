"""Directories with one writer, a stated content, and a visible end.

All directories that vtokens writes use these parts:

- A lock; see `locks`.
- A claim. `identity.json` states what decides the content and is written before
  any other file. `claim` compares it with what a program is about to do.
- An end. `complete.json` has the size and SHA-256 of every file and is written
  last. Training and built datasets have files of their own for claim and end;
  see `run/workdir.py` and `data/built_datasets.py`.
- Parts that appear whole. `new_part` and `new` write beside the place and
  rename. A part has its SHA-256 beside it (`FILE.sha256`) or, if it is a
  directory, in it (`SHA256SUMS`), in the format of sha256sum.

`claim` removes damaged parts of an unfinished directory, so that they are made
again, and refuses a finished directory that is damaged.
"""

import contextlib
import glob
import json
import os
import pathlib
import secrets
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import safetensors
from etils import epath

from vtokens.host import (
  checksums,
  errors,
  json_diff,
  json_files,
  paths,
  stopping,
  writers,
)

_IDENTITY = 'identity.json'
_COMPLETE = 'complete.json'
_PARTIAL = '.partial'
_SUMS = 'SHA256SUMS'
_SUM = '.sha256'


@contextlib.contextmanager
def unfinished(target: pathlib.Path, prefix: str) -> Iterator[pathlib.Path]:
  """A new directory to build `target` in; removed at the end.

  Names the directories that killed programs left.

  Args:
    target: the final place, for messages.
    prefix: path of the directory, up to random characters.

  Raises:
    OSError: it cannot be made.
  """
  start = pathlib.Path(prefix)
  for left in sorted(start.parent.glob(f'{glob.escape(start.name)}*')):
    writers.say(
      f'{left}: left by a killed program; delete it, unless another program '
      f'is writing {target} now'
    )
  directory = pathlib.Path(f'{prefix}{secrets.token_hex(4)}')
  directory.mkdir(parents=True)
  try:
    yield directory
  finally:
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def new(out: str) -> Iterator[pathlib.Path]:
  """A directory that becomes `out` at the end, or is removed on any failure.

  Ctrl-C and SIGTERM end the program and remove the directory.

  Args:
    out: `--out`, which must not exist.

  Raises:
    errors.UserError: `out` exists or cannot be written, or reading or writing a
      file fails meanwhile.
  """
  paths.check_is_new(out)
  target = pathlib.Path(out)
  with stopping.at_once(), contextlib.ExitStack() as stack:
    try:
      partial = stack.enter_context(unfinished(target, f'{target}{_PARTIAL}-'))
    except OSError as e:
      raise errors.UserError(f'--out: {out} cannot be written: {e}') from None
    try:
      yield partial
      # A library may have lost the exit that a signal raised.
      stopping.check()
      # Fails if a directory with content has appeared there meanwhile.
      os.rename(partial, target)
    # Libraries write too: safetensors has an exception of its own.
    except (
      OSError,
      errors.NotWrittenError,
      safetensors.SafetensorError,
    ) as e:
      raise errors.UserError(f'--out: {out}: not written: {e}') from e


def difference(
  directory: epath.PathLike, what: str, lines: Sequence[str]
) -> str:
  """Says how a directory differs from what it is wanted for.

  Args:
    directory: the directory.
    what: what it holds.
    lines: one per difference.

  Returns:
    A message, or '' if there are no differences.
  """
  if not lines:
    return ''
  return f'{directory} holds {what}:{errors.lines(lines)}'


def claim(
  directory: pathlib.Path,
  identity: dict[str, Any],
  what: str,
  *,
  rebuild: bool,
  advice: str,
) -> bool:
  """Takes a directory for the content that `identity` describes.

  Args:
    directory: need not exist.
    identity: JSON values that decide the directory's content.
    what: name of the content, for messages, e.g. 'the index bm25'.
    rebuild: start afresh if the directory has another identity or is damaged.
      Only a directory that was claimed before is ever deleted.
    advice: what to do about a refusal, for messages.

  Returns:
    Whether the directory is complete. If not, the caller continues its work.

  Raises:
    errors.UserError: it holds something else or is damaged, and `rebuild` is
      off.
  """
  path = directory / _IDENTITY
  if not path.exists():
    # A program may have been killed while it wrote the identity.
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
    or difference(
      directory,
      f'{what} made of something else',
      json_diff.diff(
        _read(directory / _IDENTITY), json.loads(json.dumps(identity)), ''
      ),
    )
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
      f'{directory}: made by an earlier version of vtokens, without checksums: '
      'only the sizes of its files were compared. Its checksums are kept from '
      'now on; delete the directory to have it made again'
    )
    finish(directory, read_info(directory))
  return complete


def finish(directory: pathlib.Path, info: dict[str, Any] | None = None) -> None:
  """Marks a directory as complete; `read_info` returns `info` again."""
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
  """Returns the `info` that `finish` was given."""
  info: dict[str, Any] = _read(directory / _COMPLETE)['info']
  return info


def is_claimed(directory: pathlib.Path) -> bool:
  """Whether a directory has been claimed."""
  return (directory / _IDENTITY).exists()


def is_complete(directory: pathlib.Path) -> bool:
  """Whether a directory was finished."""
  return (directory / _COMPLETE).exists()


def read_identity(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the identity that a directory was claimed with."""
  return _read(directory / _IDENTITY)


def identity_if_there(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the identity of a directory, or {} if it was not claimed."""
  return read_identity(directory) if is_claimed(directory) else {}


def num_bytes(directory: pathlib.Path) -> int:
  """Size of a complete directory's files, in bytes."""
  return sum(_read(directory / _COMPLETE)['files'].values())


@contextlib.contextmanager
def new_part(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write a file or a directory to, which becomes `path` at the end.

  Its SHA-256 is written too. If another worker has made the same directory
  meanwhile, that one stays.
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


def _damage(
  directory: pathlib.Path, what: str, names: Sequence[str] | None = None
) -> str:
  """Compares a complete directory with its checksums.

  Args:
    directory: an unfinished directory passes.
    what: name of its content, for the message.
    names: files to compare; None for all.

  Returns:
    A message, or '' if nothing has changed.
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
  """Removes the parts of a directory that have changed."""
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
    writers.say(f'{path}: has changed since it was written; making it again')
    remove(path)


def _sums(directory: pathlib.Path) -> str:
  """The SHA-256 of a directory's files, as sha256sum prints them."""
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
  """Deletes a directory, or a file and its SHA-256, if it exists."""
  path.with_name(path.name + _SUM).unlink(missing_ok=True)
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
