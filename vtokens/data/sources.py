"""What a config calls a source: files, TFDS data sets, built datasets."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from vtokens.data import (
  built_datasets,
  catalogue,
  dataset_names,
  files,
  formats,
)
from vtokens.data.checks import BadRecords
from vtokens.data.records import Record
from vtokens.host import errors, paths


def groups(sources: Sequence[str]) -> list[tuple[str, ...]]:
  """Sources that must be read together.

  A built dataset, `records:DIRECTORY:SPLIT`, stands by itself. All others are
  one group, since runs and caches among them apply to the questions in others.
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
    sources: see the module docstring of `vtokens.data.formats`; and
      `records:DIRECTORY[:SPLIT]`, which `vtokens.data.build` made. NAME=
      before one calls all its records' data set so.
    report: of bad records.
    corpus: files of passages, for sources that name passages by id only.
    turns: see `formats.read_records`.

  Raises:
    errors.UserError: a source or record is bad.
  """
  for group in groups(sources):
    name, location = dataset_names.split(group[0])
    if location.startswith(built_datasets.SOURCE):
      for record in built_datasets.open_store(location):
        yield dataclasses.replace(record, dataset=name) if name else record
    else:
      yield from formats.read_records(
        group, report=report, corpus=corpus, turns=turns
      )


def called(sources: Sequence[str]) -> list[str]:
  """What decides the data sets and ids of sources beside their content.

  Of each but built ones, data set, start of default ids, and label.
  """
  others = [source for source in sources if not _is_built(source)]
  return [
    ' '.join([name.dataset, name.stem, name.label, name.given])
    for name in dataset_names.of(others)
  ]


def regrouped(sources: Sequence[str]) -> dict[str, str]:
  """The data sets of sources that are not called by their file's name alone.

  Number of the source -> data set. Of one source there is nothing to tell: what
  its data set is called changes no number of a training.
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


@functools.cache
def fingerprint(source: str) -> str:
  """What tells the content of one source from any other, wherever it lies.

  A source is read once by a process.

  Returns:
    SHA-256 of a file, fingerprint of a built dataset, or version of a TFDS
    data set.

  Raises:
    errors.UserError: it is not there, or no file.
  """
  source = dataset_names.split(source)[1]
  if source.startswith(built_datasets.SOURCE):
    return built_datasets.open_store(source).fingerprint
  if catalogue.is_source(source):
    return catalogue.version(source)
  path = paths.resolve(source)
  files.check_is_file(path)
  try:
    return built_datasets.sha256(path)
  except Exception as e:
    if not paths.makes_unreadable(e):
      raise
    raise errors.UserError(
      f'{source}: cannot be read: {type(e).__name__}: {e}. Check the path; '
      'docs/data.md says where the files of configs/data/ are to be had'
    ) from e
