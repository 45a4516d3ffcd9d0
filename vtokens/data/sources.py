"""What a config calls a source: files, TFDS data sets, built datasets."""

import functools
import hashlib
from collections.abc import Iterator, Sequence

from etils import epath

from vtokens import errors, paths
from vtokens.data import catalogue, formats, store
from vtokens.data.checks import BadRecords
from vtokens.data.records import Record


def groups(sources: Sequence[str]) -> list[tuple[str, ...]]:
  """Sources that must be read together.

  A built dataset, `records:DIRECTORY:SPLIT`, stands by itself. All others are
  one group, since runs and caches among them apply to the questions in others.
  """
  others = tuple(s for s in sources if not s.startswith(store.SOURCE))
  found = [(s,) for s in sources if s.startswith(store.SOURCE)]
  return [*([others] if others else []), *found]


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
      `records:DIRECTORY[:SPLIT]`, which `vtokens.data.build` made.
    report: of bad records.
    corpus: files of passages, for sources that name passages by id only.
    turns: see `formats.read_records`.

  Raises:
    errors.UserError: a source or record is bad.
  """
  for group in groups(sources):
    if group[0].startswith(store.SOURCE):
      yield from store.open_store(group[0])
    else:
      yield from formats.read_records(
        group, report=report, corpus=corpus, turns=turns
      )


def identity(sources: Sequence[str], corpus: Sequence[str]) -> dict[str, str]:
  """What tells the content of sources and corpus from any other.

  Returns:
    Source -> SHA-256 of a file, fingerprint of a built dataset, or version of
    a TFDS data set.

  Raises:
    errors.UserError: a source is not there.
  """
  return {path: fingerprint(path) for path in [*sources, *corpus]}


@functools.cache
def fingerprint(source: str) -> str:
  """What tells the content of one source from any other; see `identity`.

  A directory of files counts as the names and contents in it. A source is
  read once by a process.

  Raises:
    errors.UserError: it is not there.
  """
  if source.startswith(store.SOURCE):
    return store.open_store(source).fingerprint
  if catalogue.is_source(source):
    return catalogue.version(source)
  path = epath.Path(paths.resolve(source))
  try:
    if not path.is_dir():
      return store.sha256(str(path))
    digest = hashlib.sha256()
    for file in sorted(paths.files_below(path)):
      digest.update(f'{store.sha256(str(file))} {file}\n'.encode())
    return digest.hexdigest()
  except Exception as e:
    if not paths.makes_unreadable(e):
      raise
    raise errors.UserError(
      f'{source}: cannot be read: {type(e).__name__}: {e}. Check the path; '
      'docs/data.md says where the files of configs/data/ are to be had'
    ) from e
