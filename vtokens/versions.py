"""What the numbers of a run depend on, beside its settings."""

import importlib.metadata

_PACKAGES = ('jax', 'jaxlib', 'flax', 'transformers', 'tokenizers')


def packages() -> dict[str, str]:
  """Versions of the packages that compute, by name."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}
