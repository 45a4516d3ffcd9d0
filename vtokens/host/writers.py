"""Output of a program: printed lines, progress bars, files."""

import contextlib
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import tqdm
from etils import epath

from vtokens.host import errors, paths

_silent = False

# Seconds after which a bar updates its clock: a batch may take minutes.
TICK = 1.5
_bars: weakref.WeakSet[tqdm.tqdm] = weakref.WeakSet()
_clock_runs = False


def silence() -> None:
  """Makes `say` and `progress` print nothing: another process does."""
  global _silent
  _silent = True


def say(text: str = '') -> None:
  """Prints a line to standard output, above any progress bar."""
  if not _silent:
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def progress(**settings: Any) -> tqdm.tqdm:
  """Makes a progress bar on standard error.

  Its clock runs on while the program waits for a device.

  Args:
    **settings: arguments of `tqdm.tqdm`.
  """
  global _clock_runs
  bar = tqdm.tqdm(dynamic_ncols=True, disable=_silent, **settings)
  if not bar.disable:
    _bars.add(bar)
    if not _clock_runs:
      _clock_runs = True
      threading.Thread(target=_tick, name='clock', daemon=True).start()
  return bar


def close_bars() -> None:
  """Removes the bars of abandoned work."""
  for bar in list(_bars):
    bar.close()


def _tick() -> None:
  """Updates bars that have not moved for a while."""
  while True:
    time.sleep(TICK)
    for bar in list(_bars):
      with bar.get_lock():
        if bar.disable:  # It is closed.
          _bars.discard(bar)
        elif time.time() - bar.last_print_t >= TICK:
          # It may have no reader any more.
          with contextlib.suppress(OSError, ValueError):
            bar.refresh(nolock=True)


def write_json(
  path: epath.PathLike, value: Any, indent: int | None = 2
) -> None:
  """Writes a JSON file, whole or not at all.

  Args:
    path: the file.
    value: a JSON value.
    indent: spaces of a level; None for one line.
  """
  text = json.dumps(value, indent=indent, ensure_ascii=False)
  write_text(path, text + '\n')


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a UTF-8 file, whole or not at all."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file, whole or not at all.

  Raises:
    errors.NotWrittenError: it cannot be written.
  """
  path = epath.Path(path)
  with paths.writing(path):
    if paths.on_object_store(path):
      path.write_bytes(data)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
      partial.write_bytes(data)


@contextlib.contextmanager
def whole(path: epath.PathLike) -> Iterator[epath.Path]:
  """A path to write to, which becomes the file at the end.

  If anything ends the block early, such as a full disk or Ctrl-C, the path is
  removed.

  Args:
    path: a file on a disk.
  """
  path = epath.Path(path)
  partial = path.with_name(path.name + '.partial')
  try:
    yield partial
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    raise


def append(path: epath.PathLike, size: int, data: bytes) -> None:
  """Keeps the first bytes of a file and replaces the rest.

  On an object store, the whole file is written anew.

  Args:
    path: the file; need not exist if `size` is 0.
    size: number of bytes to keep.
    data: what follows them.

  Raises:
    errors.UserError: the file has fewer bytes, or cannot be written.
  """
  path = epath.Path(path)
  with paths.writing(path):
    if paths.on_object_store(path):
      kept = path.read_bytes()[:size] if size and path.exists() else b''
      _check_length(path, len(kept), size)
      path.write_bytes(kept + data)
      return
    there = path.exists()
    _check_length(path, os.path.getsize(path) if there else 0, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'r+b' if there else 'wb') as file:
      file.truncate(size)
      file.seek(size)
      file.write(data)


def sync(path: epath.PathLike) -> None:
  """Waits until a file's content is on the disk.

  Raises:
    errors.NotWrittenError: it cannot be written.
  """
  with paths.writing(path), open(path, 'r+b') as file:
    os.fsync(file.fileno())


def _check_length(path: epath.Path, length: int, expected: int) -> None:
  if length < expected:
    raise errors.UserError(
      f'{path}: has {length:,} bytes, but {expected:,} were written: another '
      'program has changed or moved it'
    )


def copy_files(source: epath.Path, target: epath.Path) -> None:
  """Copies all files below a directory."""
  for path in paths.files_below(source):
    write_bytes(target / path.relative_to(source), path.read_bytes())
