"""Tests of vtokens.method.initial_tokens: rows that come from training data.

`virtual_tokens_test.py` has those of a text and of the vocabulary.
"""

import numpy as np
import pytest
import tiny_mixture

from vtokens import config
from vtokens.data import initial_texts
from vtokens.method import initial_tokens

N = 8


@pytest.fixture(scope='module')
def mixture(base, tmp_path_factory):
  return tiny_mixture.make(base.tokenizer, tmp_path_factory.mktemp('tokens'))


def _rng():
  return np.random.default_rng(7)


def _rows(base, init, mixture, number=N):
  settings = config.VirtualTokens(num_virtual_tokens=number, init=init)
  found = initial_tokens.embeddings(
    settings, base.decoder(), base.tokenizer, _rng(), mixture
  )
  assert found.dtype == np.float32
  assert found.shape == (number, base.config.embed_dim)
  return found


def test_passages(base, mixture):
  ids = initial_texts.passage_ids(mixture, N, _rng())
  table = np.asarray(base.decoder().embedding[...])
  np.testing.assert_array_equal(_rows(base, 'passages', mixture), table[ids])


def test_answers(base, mixture):
  answers = initial_texts.answer_ids(mixture, N, _rng())
  assert len({len(ids) for ids in answers}) > 2
  table = np.asarray(base.decoder().embedding[...], np.float64)
  expected = [table[ids].mean(axis=0) for ids in answers]
  found = _rows(base, 'answers', mixture)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert len(np.unique(found, axis=0)) == N
  # More rows than answers.
  found = _rows(base, 'answers', mixture, number=23)
  np.testing.assert_array_equal(found[:10], found[10:20])


@pytest.mark.parametrize('init', ['passages', 'answers'])
def test_training_data_are_needed(base, init):
  with pytest.raises(ValueError, match='need the training data'):
    _rows(base, init, None)
