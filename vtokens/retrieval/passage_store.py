"""Stores passages on disk in shards, and reads them by row.

A shard is a directory with `passages.jsonl` and `offsets.npy`, an int64 array
of shape [n + 1]: line i is the bytes from offsets[i] to offsets[i + 1].
"""

import bisect
import hashlib
import itertools
import json
import mmap
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from vtokens.data import files as data_files
from vtokens.data import formats, records
from vtokens.host import checksums, claimed_directory, errors, paths, writers
from vtokens.retrieval import retrieval_config, retrieval_inputs

_FORMAT = 1
_HASHES = 'hashes.json'
# Messages about lines of the corpus that were left out.
SKIPPED = 'skipped_passages.txt'


class PassageReader:
  """Random access to the passages of a store.

  Args:
    directory: a store.
    shard_sizes: passages in each shard.

  Attributes:
    directory: the same.
    shard_sizes: the same.
  """

  def __init__(self, directory: pathlib.Path, shard_sizes: Sequence[int]):
    self.directory = directory
    self.shard_sizes = tuple(shard_sizes)
    self._starts = [0, *itertools.accumulate(shard_sizes)]
    self._opened: dict[int, tuple[mmap.mmap, np.ndarray]] = {}

  @classmethod
  def open(cls, directory: pathlib.Path) -> 'PassageReader':
    """Opens a complete store."""
    return cls(directory, claimed_directory.read_info(directory)['shard_sizes'])

  @property
  def identity(self) -> dict[str, Any]:
    """The values that decided the content of the store."""
    return claimed_directory.read_identity(self.directory)

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, row: int) -> records.Passage:
    """The passage of a row, from 0, without a score."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    shard = bisect.bisect_right(self._starts, row) - 1
    return self._read(shard, row - self._starts[shard])

  def first_row(self, shard: int) -> int:
    """The row of a shard's first passage."""
    return self._starts[shard]

  def shard(self, shard: int, start: int, stop: int) -> list[records.Passage]:
    """Passages of a shard from `start` up to `stop` or the shard's end."""
    stop = min(stop, self.shard_sizes[shard])
    return [self._read(shard, index) for index in range(start, stop)]

  def _read(self, shard: int, index: int) -> records.Passage:
    data, offsets = self._open(shard)
    return records.Passage(
      **json.loads(data[offsets[index] : offsets[index + 1]])
    )

  def _open(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
    if shard not in self._opened:
      directory = shard_directory(self.directory, shard)
      with (directory / 'passages.jsonl').open('rb') as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      offsets = np.load(directory / 'offsets.npy', mmap_mode='r')
      self._opened[shard] = data, offsets
    return self._opened[shard]


def prepare(
  settings: retrieval_config.Corpus, index_dir: pathlib.Path, *, rebuild: bool
) -> PassageReader:
  """Opens the corpus on disk; writes it first if it is absent.

  After a kill, writing continues after the last complete shard.

  Args:
    settings: settings of the corpus.
    index_dir: directory that gets the directory `corpus`.
    rebuild: whether to replace another corpus in its place.

  Raises:
    errors.UserError: the corpus cannot be read, two passages have the same id,
      or another corpus is in its place and `rebuild` is off.
  """
  directory = index_dir / 'corpus'
  complete = claimed_directory.claim(
    directory,
    _identity(settings, index_dir),
    'the corpus',
    rebuild=rebuild,
    advice='choose another --config.index_dir, or replace it with '
    '--config.on_stale_index=rebuild',
  )
  if not complete:
    _write(settings, directory)
  return PassageReader.open(directory)


def _identity(
  settings: retrieval_config.Corpus, index_dir: pathlib.Path
) -> dict[str, Any]:
  """The values that decide the content of a store; hashes every file."""
  return {
    'format': _FORMAT,
    'files': {
      str(number): sha256
      for number, sha256 in enumerate(_hash_files(settings.paths, index_dir))
    },
    'shard_size': settings.shard_size,
    'on_bad_record': settings.on_bad_record,
    # Another version of the formats may skip other passages.
    **({'read': formats.version()} if settings.on_bad_record == 'skip' else {}),
  }


def _write(settings: retrieval_config.Corpus, directory: pathlib.Path) -> None:
  skipped: list[str] = []
  stream = retrieval_inputs.read_passages(
    settings.paths, on_bad_record=settings.on_bad_record, skipped=skipped
  )
  sizes: list[int] = []
  with tqdm.tqdm(stream, 'corpus', unit=' passages', unit_scale=True) as bar:
    passages = iter(bar)
    while size := _write_shard(
      passages, settings.shard_size, shard_directory(directory, len(sizes))
    ):
      sizes.append(size)
  writers.write_text(directory / SKIPPED, ''.join(f'{m}\n' for m in skipped))
  claimed_directory.finish(
    directory,
    {
      'num_passages': sum(sizes),
      'shard_sizes': sizes,
      'num_skipped': len(skipped),
    },
  )


def shard_directory(directory: pathlib.Path, shard: int) -> pathlib.Path:
  """Directory of a shard of a corpus or an index."""
  return directory / 'shards' / f'{shard:05}'


def _write_shard(
  passages: Iterator[records.Passage], size: int, path: pathlib.Path
) -> int:
  """Writes up to `size` passages and returns how many; 0 writes nothing."""
  if path.exists():  # A run that was killed later wrote it.
    return sum(1 for _ in itertools.islice(passages, size))
  first = next(passages, None)
  if first is None:
    return 0
  offsets = [0]
  with claimed_directory.new_part(path) as part:
    part.mkdir()
    with (part / 'passages.jsonl').open('wb') as file:
      for passage in itertools.chain(
        [first], itertools.islice(passages, size - 1)
      ):
        line = json.dumps(
          {'id': passage.id, 'title': passage.title, 'text': passage.text},
          ensure_ascii=False,
        )
        offsets.append(offsets[-1] + file.write(f'{line}\n'.encode()))
    np.save(part / 'offsets.npy', np.array(offsets, np.int64))
  return len(offsets) - 1


def _hash_files(
  files: tuple[str, ...], index_dir: pathlib.Path
) -> Iterator[str]:
  """Yields the SHA-256 of each file; that of an unchanged file is cached."""
  cache = index_dir / _HASHES
  known = _read_hashes(cache)
  for name in files:
    path = epath.Path(paths.resolve(name))
    data_files.check_is_file(str(path))
    try:
      stat = path.stat()
      entry = known.get(str(path))
      # A file written in the second of its hashing could change unnoticed.
      if not entry or (
        (entry['length'], entry['mtime']) != (stat.length, stat.mtime)
        or entry['hashed'] < stat.mtime + 2
      ):
        entry = {
          'length': stat.length,
          'mtime': stat.mtime,
          'hashed': int(time.time()),
          'sha256': _hash_file(path, stat.length),
        }
    except OSError as e:
      raise errors.UserError(
        f'config.corpus.paths: {name} cannot be read: {e}'
      ) from e
    known[str(path)] = entry
    writers.write_json(cache, checksums.seal({'files': known}))
    yield entry['sha256']


def _read_hashes(path: pathlib.Path) -> dict[str, Any]:
  """Cached hashes of files; empty if the cache is damaged."""
  try:
    values = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError):
    return {}
  whole = isinstance(values, dict) and checksums.is_sealed(values)
  return values['files'] if whole else {}


def _hash_file(path: epath.Path, length: int) -> str:
  digest = hashlib.sha256()
  with (
    path.open('rb') as file,
    tqdm.tqdm(
      total=length,
      desc=f'hash {path.name}',
      unit='B',
      unit_scale=True,
      leave=False,
    ) as bar,
  ):
    while block := file.read(1 << 22):
      digest.update(block)
      bar.update(len(block))
  return digest.hexdigest()
