"""Reads built datasets, record by record in any order.

`vtokens.data.build` writes `build.json` last: settings and hashes of inputs,
and each shard's size and SHA-256. A dataset with this file is finished.
"""

import dataclasses
import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from etils import epath

from vtokens.data.records import Record
from vtokens.host import checksums, errors, json_files, paths

SOURCE = 'records:'
MANIFEST = 'build.json'
FORMAT = 1
_REBUILD = 'build it again with python -m vtokens.data.build'
_BLOCK = 1 << 20
# The required content of `build.json`.
_SHARD = {'file': str, 'num_records': int, 'num_bytes': int, 'sha256': str}
_MANIFEST = {
  'fingerprint': str,
  'built_from': dict,
  'splits': {str: {'shards': [_SHARD], 'datasets': {str: int}}},
}


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of records.

  Attributes:
    file: name of the file.
    num_records: number of records in it.
    num_bytes: its size.
    sha256: SHA-256 of its content, 64 hexadecimal digits.
  """

  file: str
  num_records: int
  num_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of `build.json`.

  Attributes:
    path: directory of the dataset.
    fingerprint: hash of `built_from`.
    built_from: settings and hashes of inputs.
    splits: shards of each split.
    datasets: number of records by dataset, for each split.
  """

  path: str
  fingerprint: str
  built_from: Mapping[str, Any]
  splits: Mapping[str, tuple[Shard, ...]]
  datasets: Mapping[str, Mapping[str, int]]


def read_manifest(path: str) -> Manifest:
  """Reads `build.json`.

  Args:
    path: a dataset's directory, or one that holds exactly one version of it.

  Raises:
    errors.UserError: there is no finished dataset.
  """
  directory = _directory(path)
  file = directory / MANIFEST
  try:
    data = file.read_bytes()
  except (OSError, ImportError) as e:
    raise errors.UserError(
      f'{path}: no finished dataset of records here: {MANIFEST} cannot be '
      f'read ({type(e).__name__}: {e}); check the path, or {_REBUILD}'
    ) from e
  values = json_files.parse(data, str(file), {'format': int}, _REBUILD)
  if values['format'] != FORMAT:
    raise errors.UserError(
      f'{file}: format {values["format"]}, this version reads {FORMAT}; '
      f'{_REBUILD}'
    )
  # Earlier versions did not seal it.
  if checksums.has_seal(values) and not checksums.is_sealed(values):
    raise errors.UserError(
      f'{file}: the content has changed since it was written; {_REBUILD}'
    )
  json_files.check(values, str(file), _MANIFEST, _REBUILD)
  return Manifest(
    path=str(directory),
    fingerprint=values['fingerprint'],
    built_from=values['built_from'],
    splits={
      name: tuple(
        Shard(**{key: shard[key] for key in _SHARD})
        for shard in split['shards']
      )
      for name, split in values['splits'].items()
    },
    datasets={
      name: split['datasets'] for name, split in values['splits'].items()
    },
  )


def _directory(path: str) -> epath.Path:
  directory = epath.Path(paths.expand_home(path))
  try:
    if (directory / MANIFEST).exists():
      return directory
    versions = [
      child for child in directory.iterdir() if (child / MANIFEST).exists()
    ]
  except (OSError, ImportError) as e:
    raise errors.UserError(
      f'{path}: no dataset of records here: {type(e).__name__}: {e}; check '
      f'the path, or {_REBUILD}'
    ) from e
  if len(versions) != 1:
    found = (
      'several: ' + errors.several(sorted(v.name for v in versions))
      if versions
      else 'none'
    )
    raise errors.UserError(
      f'{path}: expected a finished dataset of records, with {MANIFEST}, in '
      f'this directory or one below it, found {found}; check the path, or '
      f'{_REBUILD}'
    )
  return versions[0]


def check_sizes(manifest: Manifest, split: str) -> None:
  """Checks that a split's shards exist and have their full size.

  Raises:
    errors.UserError: one is missing or has another size.
  """
  for shard in manifest.splits[split]:
    file = epath.Path(manifest.path) / shard.file
    try:
      size = file.stat().length
    except OSError as e:
      raise errors.UserError(
        f'{file}: shard of the split {split} is missing ({e}); copy the '
        f'dataset again, or delete {manifest.path} and {_REBUILD}'
      ) from e
    if size != shard.num_bytes:
      raise errors.UserError(
        f'{file}: {size:,} bytes, expected {shard.num_bytes:,}; copy the '
        f'dataset again, or delete {manifest.path} and {_REBUILD}'
      )


def verify(manifest: Manifest) -> None:
  """Compares the SHA-256 of all shards, as `sha256sum -c *.sha256` does.

  Raises:
    errors.UserError: a shard is missing or has changed.
  """
  for split, shards in manifest.splits.items():
    check_sizes(manifest, split)
    for shard in shards:
      found = sha256(str(epath.Path(manifest.path) / shard.file))
      if found != shard.sha256:
        raise errors.UserError(
          f'{manifest.path}/{shard.file}: SHA-256 {found}, expected '
          f'{shard.sha256}: the file was changed or damaged; copy the dataset '
          f'again, or delete {manifest.path} and {_REBUILD}'
        )


def sha256(path: str) -> str:
  """SHA-256 of a file's content, 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()


class RecordStore(Sequence[Record]):
  """A split of a built dataset, with random access to its records.

  Opening it reads `build.json` and the sizes of the shards. Unpickling it opens
  the files again.

  Attributes:
    path: the dataset's directory.
    split: the split's name.
    fingerprint: hash of the split's records and their order, computed from the
      shards' SHA-256.
    datasets: number of records by dataset.
  """

  def __init__(self, path: str, split: str = ''):
    """Opens a split.

    Args:
      path: see `read_manifest`.
      split: '' for the only one.

    Raises:
      errors.UserError: there is no such dataset or split, or it is not whole.
    """
    manifest = read_manifest(path)
    if not split and len(manifest.splits) == 1:
      split = next(iter(manifest.splits))
    if split not in manifest.splits:
      raise errors.UserError(
        f'{path}: {"no split " + repr(split) if split else "which split?"}; '
        f'there is {errors.several(map(repr, manifest.splits))}'
      )
    check_sizes(manifest, split)
    # Slow to import, and only built datasets need them.
    from array_record.python import array_record_data_source

    from vtokens.data import retrieval_qa

    shards = manifest.splits[split]
    self.path = manifest.path
    self.split = split
    self.datasets = dict(manifest.datasets[split])
    self.fingerprint = hashlib.sha256(
      '\n'.join(shard.sha256 for shard in shards).encode()
    ).hexdigest()
    self._parse = retrieval_qa.parse
    # The range in the name saves opening the shard to count its records.
    self._source = array_record_data_source.ArrayRecordDataSource(
      [
        f'{manifest.path}/{shard.file}[0:{shard.num_records}]'
        for shard in shards
      ]
    )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:  # type: ignore[override]
    """The record at an index, from 0; a negative one counts from the end.

    Raises:
      IndexError: there is no such record.
      errors.UserError: the shard is damaged.
    """
    number = operator.index(index)
    if not -len(self) <= number < len(self):
      raise IndexError(f'{self}: no record {number}')
    try:
      return self._parse(self._source[number % len(self)])
    # The errors of array_record and protobuf are not documented.
    except Exception as e:
      raise errors.UserError(
        f'{self.path}: record {number} of the split {self.split} cannot be '
        f'read ({type(e).__name__}: {e}). Check the shards there with '
        'sha256sum -c *.sha256'
      ) from e

  def __iter__(self) -> Iterator[Record]:
    return map(self.__getitem__, range(len(self)))

  def __repr__(self) -> str:
    return f'RecordStore({self.path!r}, {self.split!r})'

  def __getstate__(self) -> dict[str, Any]:
    return {'path': self.path, 'split': self.split}

  def __setstate__(self, state: dict[str, Any]) -> None:
    RecordStore.__init__(self, **state)


def parse_source(source: str) -> tuple[str, str]:
  """Splits `records:PATH[:SPLIT]` into path and split; '' for no split.

  Raises:
    errors.UserError: `source` does not have this form.
  """
  if not source.startswith(SOURCE):
    raise errors.UserError(
      f'{source}: expected {SOURCE}DIRECTORY or {SOURCE}DIRECTORY:SPLIT'
    )
  source = source.removeprefix(SOURCE)
  path, colon, split = source.rpartition(':')
  # The colon may belong to gs://bucket/directory.
  return (path, split) if colon and '/' not in split else (source, '')


def open_store(source: str) -> RecordStore:
  """Opens the source `records:DIRECTORY` or `records:DIRECTORY:SPLIT`.

  Raises:
    errors.UserError: see `parse_source` and `RecordStore`.
  """
  return RecordStore(*parse_source(source))
