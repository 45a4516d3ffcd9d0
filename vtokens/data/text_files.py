"""Cuts a folder of text files into the passages of a corpus."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

from vtokens.data.records import Passage
from vtokens.host import errors, paths

SUFFIXES = ('.txt', '.md')

# Bytes of a file.
_LARGEST = 1 << 28
_BLANK_LINES = re.compile(r'\n[ \t\r\f\v]*\n')
# After the end of a sentence. Chinese and Japanese have no space there.
_SENTENCE_END = re.compile(r'(?<=[.!?])[\'")\]]*(?=\s)|(?<=[。！？])')


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files of a folder, with those in folders below it.

  Attributes:
    path: the folder.
    texts: files with a name in `SUFFIXES`, in the order of their names.
    others: the other files; hidden ones are in neither list.
  """

  path: pathlib.Path
  texts: list[pathlib.Path]
  others: list[pathlib.Path]

  @classmethod
  def open(cls, path: str) -> 'Folder':
    """Lists the files of a folder.

    Raises:
      errors.UserError: it is no folder, cannot be read, or has no text file.
    """
    found: list[pathlib.Path] = []

    def fail(error: OSError) -> None:
      raise errors.UserError(
        f'{error.filename}: cannot be read: {error.strerror}'
      ) from error

    for place, folders, names in os.walk(path, onerror=fail):
      folders[:] = [name for name in folders if not name.startswith('.')]
      found += [
        pathlib.Path(place, name) for name in names if not name.startswith('.')
      ]
    texts = sorted(file for file in found if file.suffix.lower() in SUFFIXES)
    if not texts:
      raise errors.UserError(
        f'{path}: found no file {" or ".join("*" + s for s in SUFFIXES)} among '
        f'{len(found):,} files, expected text files in UTF-8'
      )
    return cls(pathlib.Path(path), texts, sorted(set(found) - set(texts)))


def read_passages(folder: Folder, most: int) -> Iterator[Passage]:
  """Yields the passages of a folder, file by file.

  A passage's title is the name of its file, its id the path of the file in the
  folder and the number of the passage, counted from 1: `a/b.txt#3`.

  Args:
    folder: the folder.
    most: most characters of a passage's text.

  Raises:
    errors.UserError: a file cannot be read or is not UTF-8.
  """
  for file in folder.texts:
    title = re.sub(r'[_\s]+', ' ', file.stem).strip()
    name = file.relative_to(folder.path).as_posix()
    for number, text in enumerate(cut(_read(file), most), 1):
      yield Passage(id=f'{name}#{number}', title=title, text=text)


def cut(text: str, most: int) -> list[str]:
  """Cuts a text into passages.

  Paragraphs, which have a blank line between them, stay whole where they fit;
  neighbours share a passage while they fit together. A longer paragraph is cut
  after sentences, or else between words, or else anywhere.

  Args:
    text: the text. White space within a paragraph becomes one space.
    most: most characters of a passage.

  Returns:
    The passages, with line breaks between paragraphs.
  """
  passages: list[str] = []
  for paragraph in _BLANK_LINES.split(text.replace('\r\n', '\n')):
    for part in _parts(' '.join(paragraph.split()), most):
      if passages and len(passages[-1]) + 1 + len(part) <= most:
        passages[-1] += f'\n{part}'
      else:
        passages.append(part)
  return passages


def _parts(paragraph: str, most: int) -> Iterator[str]:
  """A paragraph, cut where it is longer than `most`."""
  while len(paragraph) > most:
    # A space may follow the last character that fits.
    start = paragraph[: most + 1]
    ends = [found.end() for found in _SENTENCE_END.finditer(start)]
    ends = [end for end in ends if end <= most]
    stop = ends[-1] if ends else start.rfind(' ')
    if stop <= 0:
      stop = most
    yield paragraph[:stop].strip()
    paragraph = paragraph[stop:].strip()
  if paragraph:
    yield paragraph


def _read(file: pathlib.Path) -> str:
  paths.check_file(file, _LARGEST)
  with paths.reading(file):
    data = file.read_bytes()
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'{file}: byte {e.start} is not UTF-8, expected text in UTF-8; convert '
      f'it, e.g. iconv -f WINDOWS-1252 -t UTF-8 {file}'
    ) from None
