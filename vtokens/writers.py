"""What a run tells people and programs: lines, files, metrics."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import filelock
import tqdm
from etils import epath

from vtokens import errors

_silent = False


def silence() -> None:
  """Makes `say` and `progress` show nothing: another process does."""
  global _silent
  _silent = True


def say(text: str = '') -> None:
  """Prints a line to standard output, above any progress bar."""
  if not _silent:
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def progress(**settings: Any) -> tqdm.tqdm:
  """A progress bar on standard error.

  Args:
    **settings: of `tqdm.tqdm`.
  """
  return tqdm.tqdm(dynamic_ncols=True, disable=_silent, **settings)


@contextlib.contextmanager
def sole_writer(directory: str | pathlib.Path) -> Iterator[None]:
  """Makes a directory and refuses it to others that ask likewise meanwhile.

  The lock goes with the process, however it ends.

  Raises:
    errors.UserError: another one writes there, or it is not writable.
  """
  directory = pathlib.Path(directory)
  # Not the file system's own substitute, which would outlive a killed process.
  lock = filelock.FileLock(directory / '.lock', fallback_to_soft=False)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    lock.acquire(timeout=0)
  except filelock.Timeout:
    raise errors.UserError(
      f'config.workdir: another program is writing to {directory}; wait for it '
      'to end, or choose another directory'
    ) from None
  except OSError as e:
    raise errors.UserError(
      f'config.workdir: cannot write to {directory}: {e.strerror}'
    ) from None
  try:
    yield
  finally:
    lock.release()


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a UTF-8 file, whole or not at all."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)
