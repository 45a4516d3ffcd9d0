"""Names in place of local paths, for exports.

Exports are published. A path tells who trained where, and means nothing to
others: its last part stays as a name. The fingerprint or hash beside the name
identifies a base or a data file.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from vtokens.models import frozen_base
from vtokens.serving.artifact import Meta

# Fields of a run's config that hold paths or sources of data.
_PATHS = frozenset(
  (
    *('path', 'init_path', 'workdir', 'token_cache', 'corpus', 'from'),
    *('sources', 'train', 'validation', 'test'),
  )
)
# Fields whose text is never a path.
_TEXTS = frozenset(('templates', 'init_text'))
# Fields of a base's JSON files that hold paths.
_PLACES = frozenset(
  (
    *('_name_or_path', 'name_or_path', 'special_tokens_map_file'),
    *('tokenizer_file', 'vocab_file', 'merges_file'),
  )
)
# Sources that are no paths: Python packages, wheels, catalogues, the hub.
_NAMED = ('package:', 'pypi:', 'tfds:', 'hub:')
_BUILT = 'records:'
_LOCAL = re.compile(r'(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\|file:)')


def base(path: str, revision: str) -> tuple[str, str]:
  """Name and commit of a base.

  Args:
    path: the base, as a config names it.
    revision: commit of a base on the hub, else ''.

  Returns:
    The name on the hub or of a package, or the last part of a path; and the
    commit, which a path into the hub's cache has, too.
  """
  if revision or path.startswith(_NAMED):
    return path, revision
  parts = pathlib.Path(path).parts
  cached = [part for part in parts if part.startswith('models--')]
  commit = frozen_base.commit(path)
  # models--ORG--NAME/snapshots/COMMIT
  if cached and commit and parts[-1] == commit:
    return cached[-1].removeprefix('models--').replace('--', '/'), commit
  return _last(path), ''


def is_local(meta: Meta) -> bool:
  """Whether the base's name is the last part of a path."""
  return not meta.base.revision and not meta.base.id.startswith(_NAMED)


def meta(values: Meta) -> Meta:
  """The metadata without local paths."""
  name, revision = base(values.base.id, values.base.revision)
  return dataclasses.replace(
    values,
    base=dataclasses.replace(values.base, id=name, revision=revision),
    training=_names(values.training, is_path=False),
  )


def without_paths(value: Any) -> Any:
  """A JSON file of a base without paths of its publisher.

  Older versions of transformers write such paths, in nested objects, too.
  """
  if isinstance(value, Mapping):
    return {
      key: without_paths(part)
      for key, part in value.items()
      if key not in _PLACES
    }
  if isinstance(value, list):
    return [without_paths(part) for part in value]
  return value


def _names(value: Any, *, is_path: bool) -> Any:
  """JSON values with names in place of paths.

  Args:
    value: any JSON value.
    is_path: whether every text in it is a path or a source.
  """
  if isinstance(value, Mapping):
    named: dict[str, Any] = {}
    for key, part in value.items():
      found = part
      if key not in _TEXTS:
        found = _names(part, is_path=is_path or key in _PATHS)
      named[_free(_names(key, is_path=is_path), named)] = found
    return named
  if isinstance(value, (list, tuple)):
    return [_names(part, is_path=is_path) for part in value]
  if isinstance(value, str) and (is_path or _LOCAL.match(value)):
    return _source(value)
  return value


def _free(name: str, taken: Mapping[str, Any]) -> str:
  """A name that is not taken yet: two paths can have the same last part."""
  number, found = 1, name
  while found in taken:
    number += 1
    found = f'{name} ({number})'
  return found


def _source(text: str) -> str:
  """The name of a path or of a source of data."""
  if not text or text.startswith(_NAMED):
    return text
  if text.startswith(_BUILT):
    directory, colon, split = text.removeprefix(_BUILT).rpartition(':')
    if not colon or '/' in split:
      return f'{_BUILT}{_last(text.removeprefix(_BUILT))}'
    return f'{_BUILT}{_last(directory)}:{split}'
  name, equals, path = text.partition('=')
  # NAME=PATH, a source named by the user.
  if equals and path and not re.search(r'[/\\]', name):
    return f'{name}={_last(path)}'
  return _last(text)


def _last(path: str) -> str:
  """The last part of a path."""
  parts = re.split(r'[/\\]+', path.rstrip('/\\'))
  if parts[-1] not in ('', '.', '..', '~'):
    return parts[-1]
  return os.path.basename(os.path.abspath(os.path.expanduser(path))) or 'base'
