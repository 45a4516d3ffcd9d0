"""Cuts a folder of text files into passages, for `vtokens retrieve`.

python -m vtokens.chunk --documents articles --out passages.jsonl

Reads *.txt and *.md in UTF-8, in folders below, too. Writes a line of JSON for
each passage, {"id", "title", "text"}; the title is the name of the file.
"""

import json
import os
import pathlib
import statistics
from collections.abc import Sequence

from absl import flags as absl_flags

from vtokens.data import text_files
from vtokens.host import errors, paths, stopping, writers
from vtokens.settings import flags

_DOCUMENTS = flags.define_path('documents', None, 'Folder of text files.')
_OUT = flags.define_path('out', None, 'New file for the passages, *.jsonl.')
_LENGTH = absl_flags.DEFINE_integer(
  'length',
  600,
  'Most characters of a passage; 600 are about 100 English words.',
  lower_bound=50,
  upper_bound=100_000,
)


def chunk(documents: str, out: str, length: int) -> None:
  """Writes the passages of a folder; prints how many.

  Args:
    documents: folder of text files.
    out: file for the passages.
    length: most characters of a passage.

  Raises:
    errors.UserError: the folder or a file in it cannot be read, it has no text,
      or `out` exists.
  """
  if os.path.lexists(out):
    raise errors.UserError(
      f'--out: {out} exists already and is never replaced; choose another file'
    )
  folder = text_files.Folder.open(documents)
  passages = list(text_files.read_passages(folder, length))
  if not passages:
    raise errors.UserError(
      f'--documents: {documents}: the {len(folder.texts):,} text files in it '
      'are empty'
    )
  lines = [
    json.dumps(
      {'id': p.id, 'title': p.title, 'text': p.text}, ensure_ascii=False
    )
    for p in passages
  ]
  stopping.check()
  writers.write_text(pathlib.Path(out), '\n'.join(lines) + '\n')
  if folder.others:
    writers.say(
      f'left out, not {" or ".join(text_files.SUFFIXES)}: '
      f'{errors.several(folder.others)}'
    )
  middle = statistics.median(len(p.text) for p in passages)
  writers.say(
    f'{len(folder.texts):,} files, {len(passages):,} passages of at most '
    f'{length:,} characters (median {middle:,.0f}), written to {out}'
  )


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  if _DOCUMENTS.value is None or _OUT.value is None:
    raise errors.UserError('--documents FOLDER and --out FILE are needed')
  if paths.on_object_store(_DOCUMENTS.value) or paths.on_object_store(
    _OUT.value
  ):
    raise errors.UserError('--documents and --out: expected paths on a disk')
  with stopping.at_once():
    chunk(_DOCUMENTS.value, _OUT.value, _LENGTH.value)


if __name__ == '__main__':
  flags.run(main)
