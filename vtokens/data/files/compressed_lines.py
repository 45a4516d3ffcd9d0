"""Lines of files that may be compressed or remote."""

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

# Longest row, in bytes as unpacked or in characters. A row of a hundred
# passages has some 65 kB; one that unpacks to gigabytes would fill the memory.
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
  """One row of a file, not checked yet.

  Attributes:
    number: from 1; the line, where rows are lines.
    place: where it is, for messages: 'file:line' or 'file: [3]'.
    value: what it holds, or what is wrong with it.
  """

  number: int
  place: str
  value: Any | BadRecord


def stem(path: str) -> str:
  """The file's name without what tells of compression, and its last suffix."""
  name = epath.Path(path).name
  root, suffix = os.path.splitext(name)
  if suffix.lower() in _DECOMPRESSORS:
    name = root
  return os.path.splitext(name)[0]


def text_lines(path: str) -> Iterator[tuple[int, str]]:
  """(number from 1, line) of the lines that are not blank."""
  for number, line in numbered_lines(path):
    if text := line.decode('utf-8', 'surrogateescape').strip():
      yield number, text


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
  """(number from 1, line) up to the last line that is not blank.

  Of a line that is longer than `MAX_ROW`, one byte more than that is yielded,
  and the rest is read past. A mark of byte order is no part of a line, as it is
  where files were put together.

  Raises:
    RecordError: the file cannot be read to its end, or has thousands of blank
      lines.
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
  """Raises unless a path is a file, or not of this machine, or not there.

  Raises:
    RecordError: it is a directory, a pipe or a device, none of which can be
      read as often as data are.
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
  """A file to be read, decompressed if its name ends in .gz, .xz or .bz2.

  Raises:
    RecordError: the file cannot be read, at whatever point, or is no file.
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
  """The file itself, or one around it: files of fsspec read whole lines only.

  Their `readline` takes no size.
  """
  if isinstance(file, io.BufferedIOBase):
    return file  # type: ignore[return-value]
  return io.BufferedReader(file, _BLOCK)
