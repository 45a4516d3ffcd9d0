"""Lines of files that may be compressed or remote."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from vtokens.data.checks import BadRecord
from vtokens.data.records import RecordError

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

  Raises:
    RecordError: the file cannot be read to its end.
  """
  blank = []
  with opened(path) as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      if not line.strip():
        blank.append((number, line))
        continue
      yield from blank
      blank.clear()
      yield number, line


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
  """A file to be read, decompressed if its name ends in .gz, .xz or .bz2.

  Raises:
    RecordError: the file cannot be read, at whatever point.
  """
  suffix = os.path.splitext(path)[1].lower()
  decompress: Callable[..., Any] = _DECOMPRESSORS.get(
    suffix, contextlib.nullcontext
  )
  try:
    with epath.Path(path).open('rb') as raw, decompress(raw) as file:
      yield file
  # ImportError: the path is remote and its client (gcsfs, s3fs) is missing.
  except (OSError, EOFError, ImportError, zlib.error, lzma.LZMAError) as e:
    raise RecordError(
      f'{path}: cannot be read to its end: {type(e).__name__}: {e}. '
      'Check the path, or make or copy the file again'
    ) from e
