"""Versions of the packages that the numbers of a run depend on."""

import contextlib
import importlib.metadata

_PACKAGES = ('jax', 'jaxlib', 'flax', 'transformers', 'tokenizers')


def packages(*others: str) -> dict[str, str]:
  """Returns the versions of packages, by name.

  Args:
    *others: further packages, included if they are installed.
  """
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  for name in others:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found
