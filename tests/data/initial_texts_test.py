"""Tests of vtokens.data.initial_texts."""

import functools

import numpy as np
import pytest
import tiny_mixture
import tiny_models

from vtokens import config
from vtokens.data import initial_texts
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import load_tokenizer


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """Its tokens are bytes."""
  directory = tmp_path_factory.mktemp('tokenizer')
  tiny_models.save_tokenizer(directory)
  return load_tokenizer(directory)


@pytest.fixture
def make(tokenizer, tmp_path):
  return functools.partial(tiny_mixture.make, tokenizer, tmp_path)


def _rng(seed=0):
  return np.random.default_rng(seed)


def test_passages_follow_one_another(make, tokenizer):
  mixture = make()
  ids = initial_texts.passage_ids(mixture, 90, _rng())
  assert ids.dtype == np.int32 and ids.shape == (90,)
  texts = tokenizer.decode(ids.tolist()).split('Title\n')
  known = {
    passage.text
    for name in tiny_mixture.DATASETS
    for i in range(tiny_mixture.NUM_RECORDS)
    for passage in tiny_mixture.record(name, i).passages['r']
  }
  # Whole passages, and the start of a last one.
  assert len(texts) > 3
  assert {text.strip() for text in texts[1:-1]} <= known
  assert any(text.startswith(texts[-1].strip()) for text in known)
  np.testing.assert_array_equal(
    ids, initial_texts.passage_ids(mixture, 90, _rng())
  )
  assert (ids != initial_texts.passage_ids(mixture, 90, _rng(1))).any()
  # As many of them as are wanted start the same.
  np.testing.assert_array_equal(
    ids[:7], initial_texts.passage_ids(mixture, 7, _rng())
  )


def test_answers_differ_until_there_are_no_more(make, tokenizer):
  mixture = make()
  texts = [
    tokenizer.decode(ids.tolist()).strip()
    for ids in initial_texts.answer_ids(mixture, 25, _rng())
  ]
  assert set(texts) == {
    tiny_mixture.record(name, i).answers[0]
    for name in tiny_mixture.DATASETS
    for i in range(tiny_mixture.NUM_ANSWERS)
  }
  assert len(set(texts[:10])) == 10
  assert texts[10:20] == texts[:10]


def test_datasets_come_by_their_weights(make, tokenizer):
  mixture = make(
    data=config.Data(
      mixture=config.Mixture(
        weighting='weights', weights={'one': 1e-9, 'two': 1.0}
      )
    )
  )
  for ids in initial_texts.answer_ids(mixture, 8, _rng()):
    assert 'two' in tokenizer.decode(ids.tolist())
  ids = initial_texts.passage_ids(mixture, 60, _rng())
  assert 'one' not in tokenizer.decode(ids.tolist())


def test_no_passages(make):
  mixture = make(data=config.Data(passages=config.Passages(none=1.0)))
  with pytest.raises(errors.UserError, match=r'virtual_tokens\.init: passages'):
    initial_texts.passage_ids(mixture, 4, _rng())
  assert len(initial_texts.answer_ids(mixture, 4, _rng())) == 4
