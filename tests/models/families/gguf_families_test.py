"""GGUF files of every family, written from the weights of a torch model."""

import dataclasses

import flax.nnx as nnx
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import FULL, GEMMA, SLIDING

from vtokens.devices import partitioning
from vtokens.models.files import gguf_weights, weights

LENGTH = 90

_SHORT = [1.0 + 0.1 * i for i in range(6)]
_LONG = [2.0 + 0.5 * i for i in range(6)]


def _llama3_factors():
  """As the converter computes them for rope_freqs.weight."""
  factors = []
  for i in range(8):
    wavelength = 2 * np.pi * 50.0 ** (2 * i / 16)
    if wavelength < 64 / 4:
      factors.append(1.0)
    elif wavelength > 64:
      factors.append(8.0)
    else:
      smooth = (64 / wavelength - 1) / (4 - 1)
      factors.append(1 / ((1 - smooth) / 8 + smooth))
  assert len(set(factors)) > 3
  return np.array(factors, np.float32)


# name -> architecture, model_type, changes of the model, metadata, tensors.
CASES = {
  'mistral': ('llama', 'mistral', {'sliding_window': None}, {}, {}),
  'llama3': (
    'llama',
    'llama',
    {
      'rope_parameters': {
        'rope_type': 'llama3',
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 64,
        'rope_theta': 50.0,
      }
    },
    {'rope.freq_base': 50.0},
    {'rope_freqs.weight': _llama3_factors()},
  ),
  'llama_linear': (
    'llama',
    'llama',
    {'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}},
    {'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0},
    {},
  ),
  'qwen2': (
    'qwen2',
    'qwen2',
    {
      'tie_word_embeddings': True,
      'rope_parameters': {
        'rope_type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 32,
        'rope_theta': 10_000.0,
      },
    },
    {
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4.0,
      'rope.scaling.original_context_length': 32,
    },
    {},
  ),
  'qwen3': (
    'qwen3',
    'qwen3',
    {'head_dim': 24},
    {'attention.key_length': 24, 'rope.freq_base': 10_000.0},
    {},
  ),
  'phi3': (
    'phi3',
    'phi3',
    {
      'sliding_window': 20,
      'original_max_position_embeddings': 64,
      'rope_parameters': {
        'rope_type': 'longrope',
        'rope_theta': 10_000.0,
        'partial_rotary_factor': 0.75,
        'short_factor': _SHORT,
        'long_factor': _LONG,
      },
    },
    {
      'rope.dimension_count': 12,
      'attention.sliding_window': 20,
      'rope.scaling.original_context_length': 64,
      'rope.scaling.attn_factor': float(np.sqrt(1 + np.log(8) / np.log(64))),
    },
    {
      'rope_factors_short.weight': np.array(_SHORT, np.float32),
      'rope_factors_long.weight': np.array(_LONG, np.float32),
    },
  ),
  'phi4': (
    'phi3',
    'phi3',
    {'sliding_window': None},
    {'attention.sliding_window': 0},
    {},
  ),
  'gemma': ('gemma', 'gemma', GEMMA, {'attention.key_length': 24}, {}),
  'gemma2': (
    'gemma2',
    'gemma2',
    {
      **GEMMA,
      'sliding_window': 20,
      'query_pre_attn_scalar': 24,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
    {
      'attention.key_length': 24,
      'attention.sliding_window': 20,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
    {},
  ),
  'gemma3': (
    'gemma3',
    'gemma3_text',
    {
      **GEMMA,
      'num_hidden_layers': 7,
      'sliding_window': 20,
      'query_pre_attn_scalar': 24,
      'rope_parameters': {
        FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        SLIDING: {'rope_type': 'default', 'rope_theta': 1e4},
      },
    },
    {
      'attention.key_length': 24,
      'attention.sliding_window': 20,
      'rope.freq_base': 1e6,
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': 8.0,
    },
    {},
  ),
}


@jax.jit
def _logits(model, ids, positions):
  hidden, _ = model(model.embed(ids), positions)
  return model.logits(hidden)


@pytest.mark.parametrize('case', CASES)
def test_logits_equal_those_of_torch(case, tmp_path):
  architecture, model_type, changes, metadata, extra = CASES[case]
  reference = tiny_models.save(
    tmp_path / 'hf', model_type=model_type, **changes
  )
  path = tmp_path / 'model.gguf'
  gguf_models.write(path, architecture, reference, metadata, extra)
  source = gguf_weights.GGUFSource(path)
  assert source.config.model_type == (
    'llama' if architecture == 'llama' else model_type
  )
  model = weights.load_decoder(
    source,
    dataclasses.replace(source.config, context_length=LENGTH),
    jnp.float32,
    partitioning.make_mesh((-1, 1, 1)),
  )
  ids = np.random.default_rng(0).integers(256, size=(2, LENGTH))
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
  graph, params = nnx.split(model)
  found = jax.jit(
    lambda params: _logits(nnx.merge(graph, params), ids, positions)
  )(params)
  with torch.no_grad():
    expected = reference(torch.from_numpy(ids)).logits.numpy()
  assert expected.std() > 0.3
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
