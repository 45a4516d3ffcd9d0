"""Names the datasets of sources, and makes their ids unique.

In a source `NAME=PATH` all records belong to the dataset NAME. Without NAME,
and if rows do not name it, the dataset's name is

* the file's stem up to its first dot: `nq.dev.jsonl` is `nq`;
* the folder, if files of several folders have the same stem: `nq/train.jsonl`
  and `triviaqa/train.jsonl` are `nq` and `triviaqa`.

Files NAME-NNNNN-of-NNNNN are shards of one dataset.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence

from vtokens.data import catalogue, files
from vtokens.data.records import RecordError
from vtokens.host import paths

_NAMED = re.compile(r'(\w[\w.+-]*)=(.+)\Z', re.DOTALL)
# 'train-00000-of-00002.parquet', 'c4-train.00000-of-01024.json.gz',
# 'train-00000-of-00001-a09b74b3ef9c3b56.parquet', 'a.jsonl-00000-of-00010'.
_SHARD = re.compile(
  r'(?P<base>.+?)(?P<shard>[-._](?P<number>\d{2,})-of-(?P<total>\d{2,}))'
  r'(?:-[0-9a-f]{16})?(?:\.\w+)*\Z'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
  """The names of a source.

  Attributes:
    location: the source without NAME=: a path, tfds:... or records:...
    given: NAME; '' if there is none.
    dataset: dataset of its records, if neither they nor the config name one.
    stem: start of its records' default ids.
    label: prefix of its ids if other sources have equal ids. Shards of one
      dataset share a label.
  """

  location: str
  given: str
  dataset: str
  stem: str
  label: str


def split(source: str) -> tuple[str, str]:
  """Splits `NAME=PATH`; NAME is '' if the source is only a path.

  An existing file whose path has this form (`lang=en/a.jsonl`) is a path.
  """
  match = _NAMED.match(source)
  if not match or os.path.exists(os.path.expanduser(source)):
    return '', source
  return match[1], match[2]


def by_file(location: str) -> str:
  """The stem, up to its first dot, of a file or a TFDS dataset."""
  if catalogue.is_source(location):
    stem = catalogue.stem(location)
  else:
    stem = files.stem(location)
  return stem.split('.')[0] or stem


def of(sources: Sequence[str]) -> list[Name]:
  """Names sources that are read together.

  Raises:
    RecordError: a source is given twice.
    errors.UserError: a package that a source names is not installed.
  """
  places = [_Place.of(source) for source in sources]
  seen: set[str] = set()
  for place in places:
    if place.path in seen:
      raise RecordError(
        f'{place.location}: found it twice among the sources, expected it once'
      )
    seen.add(place.path)
  folders = _folder_names(places)
  datasets = [
    place.given or folders.get(place.scope) or place.first_part
    for place in places
  ]
  labels = _labels(places, datasets)
  shards = [place.scope for place in places]
  return [
    Name(
      place.location,
      place.given,
      dataset,
      place.long_stem if shards.count(place.scope) > 1 else place.stem,
      labels[place.scope],
    )
    for place, dataset in zip(places, datasets, strict=True)
  ]


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
  """The parts of a source's path.

  Attributes:
    location: the source without NAME=.
    given: NAME.
    path: absolute path, to recognise a source given twice.
    folders: folders above the file.
    stem: stem of the file.
    long_stem: stem with the number of the shard.
    base: stem without the number of the shard.
  """

  location: str
  given: str
  path: str
  folders: tuple[str, ...]
  stem: str
  long_stem: str
  base: str

  @classmethod
  def of(cls, source: str) -> '_Place':
    given, location = split(source)
    if catalogue.is_source(location):
      stem = catalogue.stem(location)
      return cls(location, given, location, (), stem, stem, stem)
    path = paths.resolve(location)
    if not paths.on_object_store(path):
      path = os.path.abspath(path)
    *folders, name = path.split('/')
    stem = long_stem = base = files.stem(path)
    shard = _SHARD.match(name)
    if shard and int(shard['number']) <= int(shard['total']):
      base = shard['base']
      if shard['shard'] not in stem:  # a.jsonl-00000-of-00010
        base, long_stem = os.path.splitext(base)[0], stem + shard['shard']
    return cls(location, given, path, tuple(folders), stem, long_stem, base)

  @property
  def scope(self) -> tuple[tuple[str, ...], str, str]:
    """Identifies the file, or the dataset of a shard: ids are unique in it."""
    tfds = self.location if catalogue.is_source(self.location) else ''
    return self.folders, self.base, tfds

  @property
  def first_part(self) -> str:
    """The stem up to its first dot."""
    return self.base.split('.')[0] or self.base


_Scope = tuple[tuple[str, ...], str, str]


def _folder_names(places: Sequence[_Place]) -> dict[_Scope, str]:
  """Dataset names by scope, for files of several folders with one stem."""
  names: dict[_Scope, str] = {}
  for base in {place.base for place in places}:
    scopes = list(
      dict.fromkeys(p.scope for p in places if p.base == base and p.folders)
    )
    if len(scopes) > 1:
      folders = [scope[0] for scope in scopes]
      names |= zip(scopes, _distinct(folders), strict=True)
  return names


def _distinct(folders: Sequence[tuple[str, ...]]) -> list[str]:
  """The nearest folder that differs in all paths, else the last few folders."""
  deepest = max(map(len, folders))
  for level in range(1, deepest + 1):
    names = [path[-level] if len(path) >= level else '' for path in folders]
    if all(names) and len(set(names)) == len(names):
      return names
  for depth in range(2, deepest):
    names = ['-'.join(path[-depth:]) for path in folders]
    if len(set(names)) == len(names):
      return names
  return ['-'.join(path) for path in folders]


def _labels(
  places: Sequence[_Place], datasets: Sequence[str]
) -> dict[_Scope, str]:
  """Labels by scope: the first kind of label that differs for all scopes."""
  kinds: tuple[Callable[[_Place, str], str], ...] = (
    lambda place, dataset: dataset,
    lambda place, dataset: place.base,
    lambda place, dataset: f'{dataset}/{place.base}',
    lambda place, dataset: place.location,
  )
  for kind in kinds:
    labels: dict[_Scope, str] = {}
    for place, dataset in zip(places, datasets, strict=True):
      labels.setdefault(place.scope, kind(place, dataset))
    if len(set(labels.values())) == len(labels):
      break
  return labels
