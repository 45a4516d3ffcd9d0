"""Reads lines of files that may be compressed or remote."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from vtokens.data.checks import BadRecord
from vtokens.data.records import RecordError

# Longest row, in unpacked bytes or in characters. A row with a hundred passages
# has about 65 kB; one that unpacks to gigabytes would fill the memory.
MAX_ROW = 1 << 26
_MAX_BLANK = 1000  # lines in a row
_BLOCK = 1 << 20
_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
  '.gz': gzip.open,
  '.xz': lzma.open,
  '.bz2': bz2.open,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """A row of a file, not checked yet.

  Attributes:
    number: number from 1; the line number if rows are lines.
    place: place for messages: 'file:line' or 'file: [3]'.
    value: the row's value, or what is wrong with it.
  """

  number: int
  place: str
  value: Any | BadRecord


def stem(path: str) -> str:
  """The file's name without .gz, .xz or .bz2 and without its last suffix."""
  name: str = epath.Path(path).name
  root, suffix = os.path.splitext(name)
  if suffix.lower() in _DECOMPRESSORS:
    name = root
  return os.path.splitext(name)[0]


def text_lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line) for lines that are not blank."""
  for number, line in numbered_lines(path):
    if text := line.decode('utf-8', 'surrogateescape').strip():
      yield number, text


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line) up to the last line that is not blank.

  A line longer than `MAX_ROW` is cut to one byte more. A byte order mark at the
  start of a line, as in concatenated files, is dropped.

  Raises:
    RecordError: the file cannot be read to its end, or has over a thousand
      blank lines in a row.
  """
  blank = number = 0
  with opened(path) as file:
    while line := file.readline(MAX_ROW + 1):
      number += 1
      cut = len(line) > MAX_ROW
      line = line.removeprefix(codecs.BOM_UTF8)
      if cut or line.strip():
        for earlier in range(number - blank, number):
          yield earlier, b''
        blank = 0
        yield number, line
      else:
        blank += 1
        if blank > _MAX_BLANK:
          raise RecordError(
            f'{path}:{number}: found {blank:,} blank lines, expected one JSON '
            'value or row in each line'
          )
      while cut:
        rest = file.readline(_BLOCK)
        cut = bool(rest) and not rest.endswith(b'\n')


def check_is_file(path: str) -> None:
  """Refuses directories, pipes and devices: data are read more than once.

  Remote and missing paths pass.

  Raises:
    RecordError: the path is one of these.
  """
  if '://' in path:
    return
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):
    return
  if stat.S_ISREG(mode):
    return
  kinds = {
    stat.S_IFDIR: 'a directory',
    stat.S_IFIFO: 'a pipe',
    stat.S_IFSOCK: 'a socket',
  }
  kind = kinds.get(stat.S_IFMT(mode), 'a device')
  raise RecordError(
    f'{path}: cannot be read: it is {kind}, expected a file, since data are '
    'read more than once'
  )


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
  """Opens a file; decompresses it if its name ends in .gz, .xz or .bz2.

  Raises:
    RecordError: the path is not a file, or reading it fails, also later.
  """
  check_is_file(path)
  suffix = os.path.splitext(path)[1].lower()
  decompress: Callable[..., Any] = _DECOMPRESSORS.get(
    suffix, contextlib.nullcontext
  )
  try:
    with (
      epath.Path(path).open('rb') as raw,
      _buffered(raw) as whole,
      decompress(whole) as file,
    ):
      yield file
  # ImportError: the path is remote and its client (gcsfs, s3fs) is missing.
  except (OSError, EOFError, ImportError, zlib.error, lzma.LZMAError) as e:
    raise RecordError(
      f'{path}: cannot be read to its end: {type(e).__name__}: {e}. '
      'Check the path, or make or copy the file again'
    ) from e


def _buffered(file: Any) -> IO[bytes]:
  """Wraps files of fsspec, whose `readline` takes no size."""
  if isinstance(file, io.BufferedIOBase):
    return file  # type: ignore[return-value]
  return io.BufferedReader(file, _BLOCK)
