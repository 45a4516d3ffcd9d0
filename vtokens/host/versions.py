"""What the numbers of a run depend on, beside its settings."""

import contextlib
import importlib.metadata

_PACKAGES = ('jax', 'jaxlib', 'flax', 'transformers', 'tokenizers')


def packages(*others: str) -> dict[str, str]:
  """Versions of the packages that compute, by name.

  Args:
    *others: further packages, told of if they are installed.
  """
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  for name in others:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found
