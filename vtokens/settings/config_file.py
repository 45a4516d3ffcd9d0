"""Config files: Python programs with a function `get_config()`."""

import dataclasses
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


def write(settings: Any, about: str) -> str:
  """The text of a config file whose get_config() returns given settings.

  Fields that have their defaults are left out.

  Args:
    settings: a config, whose defaults make its class.
    about: the file's docstring.
  """
  modules: set[str] = set()
  made = _source(settings, modules, '  ')
  imports = ''.join(
    f'from {package} import {last}\n' if package else f'import {last}\n'
    for package, _, last in (name.rpartition('.') for name in sorted(modules))
  )
  kind = made.partition('(')[0]
  return (
    f'{_docstring(about)}\n\n{imports}\n\n'
    f'def get_config() -> {kind}:\n'
    f'  return {made}\n'
  )


def _docstring(text: str) -> str:
  escaped = text.replace('\\', '\\\\').replace('"', '\\"')
  return f'"""{escaped}"""'


def _source(value: Any, modules: set[str], indent: str) -> str:
  """An expression that makes a value; adds to the modules that it needs."""
  inner = f'{indent}  '
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    kind = type(value)
    default = kind()
    modules.add(kind.__module__)
    parts = [
      f'{field.name}={_source(found, modules, inner)}'
      for field in dataclasses.fields(value)
      if (found := getattr(value, field.name)) != getattr(default, field.name)
    ]
    module = kind.__module__.rpartition('.')[2]
    start, end = f'{module}.{kind.__name__}(', ')'
  elif isinstance(value, dict):
    parts = [f'{k!r}: {_source(v, modules, inner)}' for k, v in value.items()]
    start, end = '{', '}'
  else:
    return repr(value)
  if not parts:
    return start + end
  lines = ''.join(f'{inner}{part},\n' for part in parts)
  return f'{start}\n{lines}{indent}{end}'


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
