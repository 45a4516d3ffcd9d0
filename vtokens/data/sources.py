"""Reads the sources that a config names: files, TFDS and built datasets."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

from etils import epath

from vtokens.data import (
  built_datasets,
  catalogue,
  dataset_names,
  files,
  formats,
)
from vtokens.data.checks import BadRecords
from vtokens.data.formats import drafts
from vtokens.data.records import Record
from vtokens.host import errors, paths


def groups(sources: Sequence[str]) -> list[tuple[str, ...]]:
  """Groups sources that must be read together.

  A built dataset, `records:DIRECTORY:SPLIT`, is a group alone. All others form
  one group, since runs and caches apply to the questions of other files.
  """
  others = tuple(s for s in sources if not _is_built(s))
  found = [(s,) for s in sources if _is_built(s)]
  return [*([others] if others else []), *found]


def _is_built(source: str) -> bool:
  return dataset_names.split(source)[1].startswith(built_datasets.SOURCE)


def read(
  sources: Sequence[str],
  *,
  report: BadRecords,
  corpus: Sequence[str] = (),
  turns: str = 'first',
) -> Iterator[Record]:
  """Yields the records of sources, one at a time.

  Args:
    sources: files and TFDS datasets, see `formats.read_records`, or
      `records:DIRECTORY[:SPLIT]`, made by `vtokens.data.build`. NAME= before a
      source names the dataset of all its records.
    report: account of bad records.
    corpus: files of passages, for sources that name passages by id only.
    turns: see `formats.read_records`.

  Raises:
    errors.UserError: a source or record is bad.
  """
  for group in groups(sources):
    name, location = dataset_names.split(group[0])
    if location.startswith(built_datasets.SOURCE):
      for record in built_datasets.open_store(location):
        if not (record.answerable or report.keeps_unanswerable):
          place = f'{location}: record {record.id}'
          report.add(place, drafts.unanswerable('answers'))
          continue
        yield dataclasses.replace(record, dataset=name) if name else record
    else:
      yield from formats.read_records(
        group, report=report, corpus=corpus, turns=turns
      )


def called(sources: Sequence[str]) -> list[str]:
  """Names that decide the datasets and ids of records, besides the content.

  For each source that is not a built dataset: its dataset, the start of its
  default ids, its label, and NAME.
  """
  others = [source for source in sources if not _is_built(source)]
  return [
    ' '.join([name.dataset, name.stem, name.label, name.given])
    for name in dataset_names.of(others)
  ]


def regrouped(sources: Sequence[str]) -> dict[str, str]:
  """Datasets of the sources whose dataset is not named by the file alone.

  Returns:
    Number of the source -> dataset. Empty for one source: the name of its
    dataset does not change training.
  """
  others = {i: s for i, s in enumerate(sources) if not _is_built(s)}
  if len(others) < 2:
    return {}
  called_now = dataset_names.of(list(others.values()))
  return {
    str(i): name.dataset
    for i, name in zip(others, called_now, strict=True)
    if name.given or name.dataset != dataset_names.by_file(name.location)
  }


def fingerprint(source: str) -> str:
  """Identifies the content of a source, wherever it lies.

  A file is hashed again only if it has changed, as it may between two runs of
  one program.

  Returns:
    The SHA-256 of a file, the fingerprint of a built dataset, or the version of
    a TFDS dataset.

  Raises:
    errors.UserError: the source does not exist or is not a file.
  """
  source = dataset_names.split(source)[1]
  if source.startswith(built_datasets.SOURCE):
    return built_datasets.open_store(source).fingerprint
  if catalogue.is_source(source):
    return catalogue.version(source)
  path = paths.resolve(source)
  files.check_is_file(path)
  try:
    return _sha256(path, _state(path))
  except Exception as e:
    if not paths.makes_unreadable(e):
      raise
    raise errors.UserError(
      f'{source}: cannot be read: {type(e).__name__}: {e}. Check the path; '
      'docs/data.md says where to get the files of configs/data/'
    ) from e


def _state(path: str) -> tuple[int, ...]:
  """Size, time and inode of a file; a change of its content changes one."""
  if paths.on_object_store(path):
    in_store = epath.Path(path).stat()
    return in_store.length, in_store.mtime
  on_disk = os.stat(path)
  return on_disk.st_size, on_disk.st_mtime_ns, on_disk.st_ino


@functools.cache
def _sha256(path: str, state: tuple[int, ...]) -> str:
  """Hashes a file once for each of its states."""
  del state
  return built_datasets.sha256(path)
