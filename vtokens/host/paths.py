"""Paths as configs write them: local, on an object store, in a package.

Directories and data may be local or on an object store (`gs://`), so code
opens them with `epath.Path`. What needs memory maps, locks or renames cannot
be there, and its config says so.
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

from vtokens.host import errors

# Orbax and TensorStore write past fsspec, whose lists of a directory would
# then be those of before.
for _protocol in ('gs', 'gcs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault(
    'use_listings_cache', False
  )
# It logs, with tracebacks, what it raises.
logging.getLogger('gcsfs').setLevel(logging.CRITICAL)

# Packages whose exceptions, of their own kinds, mean that a store cannot be
# reached or refuses.
_CLIENTS = ('aiohttp', 'botocore', 'gcsfs', 'google')

_PACKAGE = 'package:'

# What a path can be other than a file.
_KINDS = {
  stat.S_ISDIR: 'a directory',
  stat.S_ISFIFO: 'a pipe',
  stat.S_ISCHR: 'a device',
  stat.S_ISBLK: 'a device',
  stat.S_ISSOCK: 'a socket',
}

# What may stand before the path of a data source, and a leading ~ or ~user.
_HOME = re.compile(r'((?:[^/~=:]+=)?(?:records:)?)(~[^/]*)')


def expand_home(path: str) -> str:
  """The path with the home directory in place of a leading `~` or `~user`.

  A shell does so for words that begin with `~`, but not for `--flag=~/x`. In
  data sources the path may follow `records:` and `NAME=`.

  Raises:
    errors.UserError: the home directory is not known.
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


def shipped_configs() -> pathlib.Path:
  """The directory configs/ that vtokens brings."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  # Not installed from a wheel, it is beside the package.
  return inside if inside.is_dir() else package.parent / 'configs'


def on_object_store(path: epath.PathLike) -> bool:
  """Whether a path is that of an object store, as `gs://bucket/name` is.

  There a file is written whole, seen only then, and never appended to; there
  are no locks.
  """
  return '://' in str(path)


def is_of_a_store(error: Exception) -> bool:
  """Whether an object store's client raised an error.

  One of its own kinds, or a plain OSError out of its code.
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
  """Whether an error says that a path, wherever it is, cannot be read.

  An ImportError says so where the store's client (gcsfs, s3fs) is missing.
  """
  return isinstance(error, (OSError, ImportError)) or is_of_a_store(error)


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
  """Turns what makes a path unreadable into one message.

  Raises:
    errors.UserError: it cannot be read, e.g. for want of the store's client or
      of a permission.
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
  """Turns what keeps a path from being written into one message.

  Raises:
    errors.NotWrittenError: it cannot be written: a full disk, a missing
      permission, a file where a directory is needed.
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
  """What an error says, without the path that it is about."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f'{type(error).__name__}: {error}'


def check_file(path: epath.PathLike, most: int, where: str = '') -> None:
  """Raises unless a path, if it is there, is a file that can be read whole.

  A pipe or a device (`/dev/zero`) would be read without end.

  Args:
    path: local or on an object store.
    most: bytes that such a file may have.
    where: what names the path, such as `--config `, for messages.

  Raises:
    errors.UserError: it is something else, or larger.
  """
  if on_object_store(path):
    with reading(path):
      path = epath.Path(path)
      size = path.stat().length if path.exists() else 0
  else:
    try:
      found = os.stat(path)
    except OSError:
      return  # Who opens it says so.
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
  """Whether a file or directory is there.

  Raises:
    errors.UserError: that cannot be found out; see `reading`.
  """
  with reading(path):
    return bool(path.exists())


def check_on_disk(path: str) -> None:
  """Raises if a base is on an object store.

  Raises:
    errors.UserError: it is.
  """
  if on_object_store(path):
    raise errors.UserError(
      f'config.base.path: {path}: a base is read from a disk; copy it to one '
      'first (gcloud storage cp --recursive), on each host'
    )


def check_is_new(out: str) -> None:
  """Raises if a directory for `--out` is there, or cannot be made on a disk.

  Raises:
    errors.UserError: it is there, or on an object store.
  """
  if on_object_store(out):
    raise errors.UserError(
      f'--out: {out}: this is written to a disk; copy it from there'
    )
  if os.path.lexists(out):
    raise errors.UserError(
      f'--out: {out} is there already, and is never replaced; choose another '
      'directory'
    )


def files_below(directory: epath.Path) -> Iterator[epath.Path]:
  """The files of a directory and of those in it."""
  # epath's own walk loses the gs:// (etils 1.15), and its glob knows no **.
  for path in directory.iterdir():
    if path.is_dir():
      yield from files_below(path)
    # An object `directory/` marks a directory, and is listed as if in it.
    elif path.name != directory.name or path.exists():
      yield path
