"""Earlier names of modules, which users' files and cards of exports import."""

import importlib
import types
from collections.abc import Callable, Mapping


def aliases(
  package: str, modules: Mapping[str, str]
) -> Callable[[str], types.ModuleType]:
  """A package's `__getattr__`: `from package import name` finds the module.

  Args:
    package: the package's `__name__`.
    modules: the full name of today's module by its earlier name in `package`.
  """

  def find(name: str) -> types.ModuleType:
    if name in modules:
      return importlib.import_module(modules[name])
    raise AttributeError(f'module {package!r} has no attribute {name!r}')

  return find
