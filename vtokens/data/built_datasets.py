"""Built datasets, read record by record in any order.

A dataset is finished once it has a `build.json`, which `vtokens.data.build`
writes last: what it was built from, and each shard's size and SHA-256.
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
# What `build.json` has to hold.
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
    file: its name.
    num_records: how many it holds.
    num_bytes: its size.
    sha256: of its content, 64 hexadecimal digits.
  """

  file: str
  num_records: int
  num_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What is known of a dataset without its shards.

  Attributes:
    path: its directory.
    fingerprint: of what it was built from.
    built_from: settings and hashes of inputs, that the fingerprint is of.
    splits: the shards of each split.
    datasets: the number of records in each split, by dataset.
  """

  path: str
  fingerprint: str
  built_from: Mapping[str, Any]
  splits: Mapping[str, tuple[Shard, ...]]
  datasets: Mapping[str, Mapping[str, int]]


def read_manifest(path: str) -> Manifest:
  """Reads `build.json`.

  Args:
    path: of a dataset, or a directory that holds just one version of it.

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
  """Checks that a split's shards are there, in their full size.

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
  """Reads all shards and compares their SHA-256.

  `sha256sum -c *.sha256` in the dataset's directory does the same.

  Raises:
    errors.UserError: a shard is missing or is not what was built.
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
  """Of a file's content, 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()


class RecordStore(Sequence[Record]):
  """A split of a built dataset; reads a record when it is asked for.

  Opening it reads `build.json` and the sizes of the shards. It can be pickled,
  and opens the files anew where it is unpickled.

  Attributes:
    path: the dataset's directory.
    split: the split's name.
    fingerprint: hash of the split's records and their order, from the
      metadata alone.
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
    # Only users of built datasets need these, and they are slow to import.
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
    # With the range in its name a shard is not opened to count its records.
    self._source = array_record_data_source.ArrayRecordDataSource(
      [
        f'{manifest.path}/{shard.file}[0:{shard.num_records}]'
        for shard in shards
      ]
    )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:  # type: ignore[override]
    """The record at an index from 0; negative ones count from the end.

    Raises:
      IndexError: there is none.
      errors.UserError: the shard is damaged.
    """
    number = operator.index(index)
    if not -len(self) <= number < len(self):
      raise IndexError(f'{self}: no record {number}')
    try:
      return self._parse(self._source[number % len(self)])
    # What array_record and protobuf raise is not documented.
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
  """The path and the split, '' if none, of `records:PATH` or with `:SPLIT`.

  Raises:
    errors.UserError: `source` is not of this form.
  """
  if not source.startswith(SOURCE):
    raise errors.UserError(
      f'{source}: expected {SOURCE}DIRECTORY or {SOURCE}DIRECTORY:SPLIT'
    )
  source = source.removeprefix(SOURCE)
  path, colon, split = source.rpartition(':')
  # The colon may be that of gs://bucket/directory.
  return (path, split) if colon and '/' not in split else (source, '')


def open_store(source: str) -> RecordStore:
  """Opens what a config names `records:DIRECTORY` or `records:DIRECTORY:SPLIT`.

  Raises:
    errors.UserError: see `parse_source` and `RecordStore`.
  """
  return RecordStore(*parse_source(source))
