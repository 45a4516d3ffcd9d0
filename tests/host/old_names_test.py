"""Tests of the earlier names of modules, which users' files import."""

import importlib

import pytest

from vtokens import plug, vllm_client
from vtokens.data import built_datasets
from vtokens.data.build import build_config
from vtokens.evaluation import eval_config
from vtokens.host import paths
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.recipes import spring_data
from vtokens.retrieval import retrieval_config
from vtokens.serving import model_cache
from vtokens.serving import plug as serving_plug
from vtokens.serving import vllm_client as serving_client


@pytest.mark.parametrize(
  ('package', 'name', 'module'),
  [
    ('vtokens', 'paths', paths),
    ('vtokens', 'recipes_data', spring_data),
    ('vtokens.data', 'store', built_datasets),
    ('vtokens.models', 'gguf_tokenizer', gguf_tokenizer),
    ('vtokens.data', 'build_config', build_config),
    ('vtokens.evaluation', 'config', eval_config),
    ('vtokens.retrieval', 'config', retrieval_config),
  ],
)
def test_modules_by_their_earlier_names(package, name, module):
  namespace: dict = {}
  exec(f'from {package} import {name}', namespace)
  assert namespace[name] is module


@pytest.mark.parametrize(
  'package',
  ['vtokens', 'vtokens.data', 'vtokens.evaluation', 'vtokens.retrieval'],
)
def test_a_name_that_never_was(package):
  with pytest.raises(ImportError, match='nothing'):
    exec(f'from {package} import nothing')
  with pytest.raises(AttributeError, match='nothing'):
    _ = importlib.import_module(package).nothing


@pytest.mark.parametrize(
  ('documented', 'names', 'home'),
  [
    (
      plug,
      {'attach', 'detach', 'load', 'prompt_ids', 'prompt_text', 'prompt_texts'},
      serving_plug,
    ),
    (plug, {'generate', 'generate_inputs'}, model_cache),
    (
      vllm_client,
      {'Client', 'encode_tensor', 'read_embedding'},
      serving_client,
    ),
  ],
)
def test_documented_names(documented, names, home):
  assert names <= set(documented.__all__)
  for name in names:
    assert getattr(documented, name) is getattr(home, name)
