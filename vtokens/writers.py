"""What a run tells people and programs: lines, files, metrics."""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import filelock
import tqdm

from vtokens import errors


def say(text: str = '') -> None:
  """Prints a line to standard output, above any progress bar."""
  tqdm.tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


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


def write_json(path: str | pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a UTF-8 file, whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


class MetricsWriter:
  """Appends one JSON object per line to a file.

  Args:
    path: the file.
    step: lines of later steps, left by a run that was killed after its last
      checkpoint, are dropped, as is a line that was cut off.
    validated: likewise for the lines of validations.
  """

  def __init__(self, path: str | pathlib.Path, step: int, validated: int):
    self._path = pathlib.Path(path)
    kept = [
      row
      for row in read_metrics(path)
      if row['step'] <= (validated if 'validation_loss' in row else step)
    ]
    write_text(path, ''.join(json.dumps(row) + '\n' for row in kept))
    self._file = self._path.open('a', encoding='utf-8')

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Appends the values of a step."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file, its content on disk."""
    os.fsync(self._file.fileno())
    self._file.close()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; none if it does not exist."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break  # Cut off by a kill; only ever the last line.
  return rows
