"""The table: lookup, initialisers, file."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from vtokens import config
from vtokens.host import errors
from vtokens.method import virtual_tokens
from vtokens.serving import table_file

N = 12


def initial(base, seed=0, **settings) -> np.ndarray:
  tokens = config.VirtualTokens(num_virtual_tokens=N, **settings)
  return virtual_tokens.TABLE.init(tokens, base.decoder(), base.tokenizer, seed)


def rows_of(base, ids) -> np.ndarray:
  return np.asarray(base.decoder().embedding[...])[np.asarray(ids)]


def test_lookup_takes_each_id_from_its_table(base):
  decoder = base.decoder()
  v = base.config.vocab_size
  table = jnp.asarray(np.random.default_rng(0).normal(size=(N, 64)), 'float32')
  ids = jnp.asarray([[0, v - 1, v, v + N - 1, 5, v + 3]])
  out = np.asarray(virtual_tokens.TABLE.embed(decoder, table, ids))[0]
  np.testing.assert_array_equal(out[[0, 1, 4]], rows_of(base, [0, v - 1, 5]))
  np.testing.assert_array_equal(out[[2, 3, 5]], table[np.array([0, N - 1, 3])])


def test_text_repeats_the_sentence(base):
  table = initial(base, init='text', init_text='abcde')
  ids = base.tokenizer.encode('abcde')
  np.testing.assert_array_equal(table, rows_of(base, (ids * 3)[:N]))
  assert table.dtype == np.float32


def test_long_text_is_truncated(base):
  table = initial(base, init='text')
  ids = base.tokenizer.encode('According to the previous relevant passages')
  np.testing.assert_array_equal(table, rows_of(base, ids[:N]))


def test_vocab_samples_rows_by_seed(base):
  table = initial(base, init='vocab')
  # The first 256 ids are bytes, the next three special.
  used = rows_of(base, range(256))
  for row in table:
    assert (used == row).all(axis=1).any()
  np.testing.assert_array_equal(table, initial(base, init='vocab'))
  assert (table != initial(base, init='vocab', seed=1)).any()


def test_normal_has_its_deviation_and_seed(base):
  table = initial(base, init='normal', init_std=0.5)
  assert 0.4 < table.std() < 0.6
  np.testing.assert_array_equal(
    table, initial(base, init='normal', init_std=0.5)
  )
  assert (table != initial(base, seed=1, init='normal', init_std=0.5)).any()


def test_saved_table_comes_back(base, tmp_path):
  path = tmp_path / 'table.safetensors'
  saved = initial(base, init='normal')
  table_file.save(path, saved, {'step': 3, 'base': 'x/y'})
  loaded, metadata = table_file.load(path)
  np.testing.assert_array_equal(loaded, saved)
  assert metadata == {'step': 3, 'base': 'x/y'}
  np.testing.assert_array_equal(
    initial(base, init='table', init_path=str(path)), saved
  )
  assert [p.name for p in tmp_path.iterdir()] == ['table.safetensors']


def bad_tables():
  nan = np.zeros((2, 64), np.float32)
  nan[1, 3] = np.nan
  return {
    'shape': (np.zeros((N + 1, 64), np.float32), r'\[13, 64\].*\[12, 64\]'),
    'width': (np.zeros((N, 65), np.float32), r'\[12, 65\].*\[12, 64\]'),
    'nan': (nan, 'NaN'),
  }


@pytest.mark.parametrize('case', bad_tables())
def test_bad_table(base, tmp_path, case):
  table, message = bad_tables()[case]
  path = tmp_path / 'table.safetensors'
  table_file.save(path, table, {})
  with pytest.raises(errors.UserError, match=message):
    initial(base, init='table', init_path=str(path))


@pytest.mark.parametrize('content', [None, b'', b'not safetensors at all'])
def test_unreadable_table(tmp_path, content):
  path = tmp_path / 'table.safetensors'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match=r'table\.safetensors'):
    table_file.load(path)


def test_hash_is_of_the_values():
  table = np.arange(6, dtype=np.float32).reshape(2, 3)
  expected = hashlib.sha256(np.arange(6, dtype='<f4').tobytes()).hexdigest()
  assert table_file.sha256(table) == expected
  # However it lies in memory.
  assert table_file.sha256(np.asfortranarray(table)) == expected
