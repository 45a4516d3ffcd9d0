"""Locks of directories and files: `.lock`, or one file for each entry.

`sole_writer` refuses a second program; `locked` and `locked_file` wait for the
first to end. A lock ends with its process.
"""

import contextlib
import fcntl
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

from vtokens.host import errors, paths, writers

_LOCK = '.lock'


@contextlib.contextmanager
def locked_file(
  path: pathlib.Path, busy: Callable[[], None] = lambda: None
) -> Iterator[IO[str]]:
  """Opens a file and holds its lock, which other processes wait for.

  Args:
    path: made if absent; its content is kept.
    busy: called if another process holds the lock; may raise to not wait.

  Yields:
    The file, open to read and append.

  Raises:
    OSError: it cannot be opened or locked.
  """
  with open(path, 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      busy()
      fcntl.flock(file, fcntl.LOCK_EX)
    yield file


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Makes a directory and waits until no other program works in it.

  Raises:
    errors.NotWrittenError: it cannot be written.
  """

  def busy() -> None:
    writers.say(f'{directory}: another program works here; waiting for it')

  with contextlib.ExitStack() as stack:
    with paths.writing(directory):
      directory.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locked_file(directory / _LOCK, busy))
    yield


@contextlib.contextmanager
def sole_writer(directory: epath.PathLike) -> Iterator[None]:
  """Makes a work directory and refuses it to other programs meanwhile.

  An object store has no locks: there, only write access is checked.

  Raises:
    errors.UserError: another program writes there, or it is not writable.
  """
  directory = epath.Path(directory)
  if paths.on_object_store(directory):
    _check_store_writable(directory)
    yield
    return

  def busy() -> None:
    raise errors.UserError(
      f'config.workdir: another program is writing to {directory}; wait for '
      'it to end, or choose another directory'
    )

  with contextlib.ExitStack() as stack:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locked_file(pathlib.Path(directory) / _LOCK, busy))
    except OSError as e:
      raise errors.UserError(
        f'config.workdir: cannot write to {directory}: {e.strerror}'
      ) from None
    yield


def _check_store_writable(directory: epath.Path) -> None:
  try:
    (directory / '.writable').write_text('')
    (directory / '.writable').unlink()
  # Each store has exceptions of its own, and so have its credentials.
  except Exception as e:
    raise errors.UserError(
      f'config.workdir: cannot write to {directory}: {type(e).__name__}: {e}'
    ) from e


def check_writable(directory: pathlib.Path) -> None:
  """Makes a directory and raises if no file can be made in it.

  Raises:
    errors.NotWrittenError: the directory, or a file in it, cannot be written.
  """
  with paths.writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
      pass
