"""Config files: Python programs with a function `get_config()`."""

import os
import pathlib
import sys
import traceback
from typing import Any

from vtokens.host import errors, paths

# Bytes of a file.
_LARGEST = 16 << 20


def load(argument: str, settings: type) -> Any:
  """Runs a config file and returns what its get_config() returns, unchecked.

  Args:
    argument: FILE, or FILE:VARIANT for get_config(VARIANT).
    settings: the dataclass that get_config() must return.

  Raises:
    errors.UserError: the file cannot be read, fails (with the line where), or
      returns something else.
  """
  argument = paths.expand_home(argument)
  path, variant = argument, None
  if ':' in argument and not pathlib.Path(argument).exists():
    path, _, variant = argument.rpartition(':')
  # A shell makes a pipe of <(...), which can be read only under this path.
  if not path.startswith('/dev/fd/'):
    path = _or_shipped(path)
    paths.check_file(path, _LARGEST, '--config ')
  try:
    source = pathlib.Path(path).read_bytes()
  except OSError as e:
    raise errors.UserError(
      f'--config {path}: cannot be read: {e.strerror}'
    ) from e
  namespace: dict[str, Any] = {'__name__': 'config', '__file__': path}
  try:
    exec(compile(source, path, 'exec'), namespace)
    if 'get_config' not in namespace:
      raise errors.UserError(
        f'--config {path}: has no function get_config() -> {name(settings)}'
      )
    config = namespace['get_config'](*([] if variant is None else [variant]))
  except errors.UserError:
    raise
  # The file is a program of the user's; it can raise anything.
  except Exception as e:
    place = f'{path}:{line}' if (line := _line(e, path)) else path
    raise errors.UserError(f'--config {place}: {type(e).__name__}: {e}') from e
  if not isinstance(config, settings):
    raise errors.UserError(
      f'--config {path}: get_config() returned {name(type(config))}, expected '
      f'{name(settings)}'
    )
  return config


def name(kind: type) -> str:
  """A type's name as it is written in a config file."""
  module = kind.__module__
  return kind.__name__ if module == 'builtins' else f'{module}.{kind.__name__}'


def _line(error: Exception, path: str) -> int | None:
  """The last line of a config file that an error passed, counted from 1."""
  if isinstance(error, SyntaxError) and error.filename == path:
    return error.lineno
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == path]
  return lines[-1] if lines else None


def _or_shipped(path: str) -> str:
  """The path itself, or else the config file of that name in the package.

  So `configs/quickstart.py` can be typed in any directory. A local file wins.
  """
  if pathlib.PurePath(path).parts[:1] != ('configs',) or os.path.exists(path):
    return path
  found = paths.shipped_configs().parent / path
  if not found.is_file():
    return path
  print(
    f'--config {path}: not in this directory; this one of vtokens is used: '
    f'{found}',
    file=sys.stderr,
  )
  return str(found)
