"""Paths as configs write them: local, on an object store, in a package.

Directories and data may be local or on an object store (`gs://`), so code
opens them with `epath.Path`. What needs memory maps, locks or renames cannot
be there, and its config says so.
"""

import importlib.util
import pathlib
from collections.abc import Iterator

import fsspec.config
from etils import epath

from vtokens import errors

# Orbax and TensorStore write past fsspec, whose lists of a directory would
# then be those of before.
for _protocol in ('gs', 'gcs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault(
    'use_listings_cache', False
  )

_PACKAGE = 'package:'


def resolve(path: str) -> str:
  """The path itself, or for `package:NAME/FILE` a file of a Python package.

  Raises:
    errors.UserError: the package is not installed or has no such file.
  """
  if not path.startswith(_PACKAGE):
    return path
  name, _, file = path.removeprefix(_PACKAGE).partition('/')
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):  # No parent package, or no name.
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise errors.UserError(
      f'{path}: the Python package {name!r} is not installed; try: pip '
      f'install {name.replace("_", "-")}'
    )
  for location in spec.submodule_search_locations:
    found = pathlib.Path(location, file)
    if found.is_file():
      return str(found)
  raise errors.UserError(f'{path}: the package {name!r} has no file {file!r}')


def on_object_store(path: epath.PathLike) -> bool:
  """Whether a path is that of an object store, as `gs://bucket/name` is.

  There a file is written whole, seen only then, and never appended to; there
  are no locks.
  """
  return '://' in str(path)


def exists(path: epath.Path) -> bool:
  """Whether a file or directory is there.

  Raises:
    errors.UserError: that cannot be found out, e.g. for want of the store's
      client or of a permission.
  """
  try:
    return path.exists()
  except (OSError, ImportError) as e:
    raise errors.UserError(f'{path}: cannot be read: {e}') from e


def files_below(directory: epath.Path) -> Iterator[epath.Path]:
  """The files of a directory and of those in it."""
  # epath's own walk loses the gs:// (etils 1.15), and its glob knows no **.
  for path in directory.iterdir():
    if path.is_dir():
      yield from files_below(path)
    else:
      yield path
