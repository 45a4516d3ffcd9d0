"""Frequencies against transformers' own functions; rotation."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vtokens.models import rope
from vtokens.models.decoder_config import Rope
from vtokens.models.families import registry

_FACTORS = {
  'short_factor': [1.0 + i / 10 for i in range(32)],
  'long_factor': [1.0 + i * i for i in range(32)],
}
# As in the files of Llama 3.1 8B, Qwen2.5 with YaRN, Phi-3 mini 128k and of
# models stretched by other means.
SCALINGS = {
  'llama3': {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_theta': 500_000.0,
  },
  'yarn': {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32768,
    'rope_theta': 1_000_000.0,
  },
  # Its ramp is so short that both ends are the same index.
  'yarn_without_ramp': {
    'rope_type': 'yarn',
    'factor': 2.0,
    'original_max_position_embeddings': 64,
    'beta_fast': 1.0,
    'beta_slow': 1.0,
    'rope_theta': 10_000.0,
    'truncate': False,
  },
  'linear': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 10_000.0},
  'dynamic': {'rope_type': 'dynamic', 'factor': 2.0, 'rope_theta': 10_000.0},
  'longrope': {
    'rope_type': 'longrope',
    'original_max_position_embeddings': 4096,
    'rope_theta': 10_000.0,
    **_FACTORS,
  },
}


@pytest.mark.parametrize('length', [100, 131_072, 200_000])
@pytest.mark.parametrize('name', SCALINGS)
def test_frequencies_equal_those_of_transformers(name, length):
  fields = {
    'model_type': 'llama',
    'hidden_size': 256,
    'num_attention_heads': 4,
    'num_hidden_layers': 1,
    'intermediate_size': 8,
    'vocab_size': 8,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 131_072,
    'rope_parameters': dict(SCALINGS[name]),
  }
  (kind,) = registry.from_hf(fields).layer_pattern
  theirs = transformers.LlamaConfig(**fields)
  function = ROPE_INIT_FUNCTIONS[SCALINGS[name]['rope_type']]
  expected, scale = function(theirs, seq_len=length)
  found = rope.frequencies(kind.rope, 64, length)
  assert found.dtype == np.float32
  # To the last bits of float32, also of the slowest.
  np.testing.assert_allclose(found, expected.numpy(), rtol=5e-7, atol=0)
  assert kind.rope.attention_factor == pytest.approx(scale, rel=1e-7)


def test_without_positions_nothing_turns():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
  positions = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
  found = rope.rotate(jnp.asarray(x), rope.angles(positions, None, 8, 10))
  np.testing.assert_array_equal(found, x)


def test_a_part_of_each_head_turns():
  x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
  positions = jnp.asarray([[0, 1, 5]], jnp.int32)
  angles = rope.angles(positions, Rope(), 4, 10)
  found = np.asarray(rope.rotate(jnp.asarray(x), angles))
  np.testing.assert_array_equal(found[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(found[:, 0], x[:, 0])
  assert (found[:, 1:, :, :4] != x[:, 1:, :, :4]).all()
  whole = rope.rotate(jnp.asarray(x[..., :4]), angles)
  np.testing.assert_array_equal(found[..., :4], whole)


@pytest.mark.parametrize(
  ('kind', 'length', 'part'),
  [
    ('longrope', 4096, 'the short factors'),
    ('longrope', 4097, 'the long factors'),
    ('dynamic', 4096, 'not stretched'),
    ('dynamic', 4097, ': stretched'),
  ],
)
def test_regime(kind, length, part):
  text = rope.regime(Rope(type=kind, original_max_positions=4096), length)
  assert part in text


def test_types_that_do_not_depend_on_the_length():
  for kind in ('default', 'linear', 'yarn', 'llama3'):
    assert rope.regime(Rope(type=kind, original_max_positions=1), 10) is None
