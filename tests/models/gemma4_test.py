"""Gemma 4: its files, and virtual tokens with inputs of each layer."""

import json
import types

import decoder_cases
import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import wrapped_models

from vtokens import config
from vtokens.host import errors
from vtokens.method.virtual_tokens import TABLE
from vtokens.models import frozen_base
from vtokens.models.families import registry
from vtokens.planning import flops, known_models

_IMAGE = 300
_ROWS = 4


def _logits(decoder, table, ids, others):
  """Ours.

  Args:
    decoder: the model.
    table: virtual tokens.
    ids: of a row.
    others: ids that inputs of each layer are made of.
  """

  @nnx.jit
  def run(decoder, ids, others):
    x = TABLE.embed(decoder, jnp.asarray(table), ids)
    hidden, _ = decoder(x, jnp.arange(ids.shape[1])[None], ids=others)
    return decoder.logits(hidden)

  return np.asarray(run(decoder, ids, others))


def _fields(directory):
  return json.loads((directory / 'config.json').read_text())


def _base(directory):
  return frozen_base.open_base(config.Base(str(directory)))


def test_virtual_tokens_have_the_row_of_the_padding(tmp_path):
  """As transformers' model reads embeddings of an image: they have no ids."""
  model = wrapped_models.save(tmp_path, 'gemma4')
  model.config.image_token_id = _IMAGE
  rng = np.random.default_rng(0)
  width = model.config.text_config.hidden_size
  table = rng.normal(size=(_ROWS, width)).astype(np.float32)
  ids = rng.integers(256, size=(1, 40)).astype(np.int32)
  place = slice(20, 20 + _ROWS)
  ids[0, place] = _IMAGE
  image = torch.from_numpy(table * np.float32(width**0.5))
  images = {'image': types.SimpleNamespace(pooler_output=[image])}
  with torch.no_grad():
    expected = model(
      torch.from_numpy(ids).long(), mm_encoder_outputs=images
    ).logits.numpy()
  decoder = nnx.merge(*decoder_cases.load(tmp_path))
  size = decoder.config.vocab_size
  ids[0, place] = size + np.arange(_ROWS)
  found = _logits(decoder, table, ids, ids)
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
  # The row matters.
  other = _logits(decoder, table, ids, np.where(ids < size, ids, 7))
  assert np.abs(other - expected).max() > 1e-2


def test_ids_are_needed(tmp_path):
  decoder_cases.save(tmp_path, 'gemma4_shared')
  decoder = nnx.merge(*decoder_cases.load(tmp_path))
  ids = jnp.zeros((1, 4), jnp.int32)
  with pytest.raises(ValueError, match='need the ids'):
    decoder.encode(decoder.embed(ids), ids)


def test_keys_of_layers_that_read_others_are_skipped(tmp_path):
  """Published files have them; in and out of a wrapper."""
  for name, save, prefix in (
    ('plain', decoder_cases.save, 'model.'),
    ('wrapped', wrapped_models.save, 'model.language_model.'),
  ):
    directory = tmp_path / name
    if name == 'plain':
      save(directory, 'gemma4_shared')
    else:
      shared = {'num_hidden_layers': 4, 'num_kv_shared_layers': 2}
      kinds = ['sliding_attention', 'full_attention'] * 2
      save(directory, 'gemma4', layer_types=kinds, **shared)
    before = _base(directory)
    last = before.config.num_layers - 1
    file = directory / 'model.safetensors'
    tensors = safetensors.torch.load_file(file)
    for part in ('k_proj', 'v_proj', 'k_norm'):
      tensors[f'{prefix}layers.{last}.self_attn.{part}.weight'] = torch.ones(9)
    safetensors.torch.save_file(tensors, file, {'format': 'pt'})
    assert _base(directory).fingerprint == before.fingerprint
    # Layers with keys of their own need them.
    del tensors[f'{prefix}layers.0.self_attn.k_proj.weight']
    safetensors.torch.save_file(tensors, file, {'format': 'pt'})
    with pytest.raises(errors.UserError, match=r'layers\.0\.self_attn\.k_proj'):
      _base(directory)


def test_both_forms_of_the_sizes_of_wide_layers(tmp_path):
  """Published files name them; newer transformers lists the layers."""
  decoder_cases.save(tmp_path, 'gemma4')
  fields = _fields(tmp_path)
  listed = fields.pop('per_layer_config')
  assert set(listed) == {'1'}
  assert 'global_head_dim' not in fields
  expected = registry.from_hf({**fields, 'per_layer_config': listed})
  named = {
    'global_head_dim': listed['1']['head_dim'],
    'num_global_key_value_heads': listed['1']['num_key_value_heads'],
  }
  assert registry.from_hf({**fields, **named}) == expected
  widths = [expected.head_width(kind) for kind in expected.layer_kinds]
  assert widths == [12, 20]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'per_layer_config': {'0': {'head_dim': 6}}}, 'per_layer_config is'),
    ({'num_kv_shared_layers': 3}, 'num_kv_shared_layers is 3'),
    ({'vocab_size_per_layer_input': 100}, 'vocab_size_per_layer_input is 100'),
    ({'pad_token_id': 3}, 'pad_token_id is 3'),
    ({'use_bidirectional_attention': 'all'}, 'use_bidirectional_attention'),
    ({'num_global_key_value_heads': 3}, 'num_global_key_value_heads is 3'),
    ({'rope_parameters': {'full_attention': {}}}, 'sliding_attention'),
  ],
)
def test_what_is_refused(fields, message):
  values = {
    **known_models.CONFIGS['google/gemma-4-E2B-it'][0]['text_config'],
    'num_hidden_layers': 4,
    'layer_types': ['sliding_attention', 'full_attention'] * 2,
    'num_kv_shared_layers': 2,
    'attention_k_eq_v': True,
  }
  registry.from_hf(values)
  with pytest.raises(errors.UserError, match=message):
    registry.from_hf({**values, **fields})


def test_arithmetic_of_two_widths():
  """Scores of wide heads take twice as many products."""
  base = known_models.read_architecture('google/gemma-4-31B-it')
  short, long = (
    flops.train_flops(base, [(length, length, 0, 0)]) for length in (1, 1001)
  )
  pairs = 1001 * 1002 / 2 - 1
  scores = 4 * 32 * (50 * 256 + 10 * 512) * pairs
  products = 2 * flops.matrix_weights(base) * 1000
  np.testing.assert_allclose(long - short, scores + products, rtol=1e-12)
