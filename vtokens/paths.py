"""Paths as configs write them."""

import importlib.util
import pathlib

from vtokens import errors

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
