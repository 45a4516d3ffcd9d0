"""Fingerprints stay: work directories and tables name a base by them."""

import hashlib

import pytest
import small_config

from vtokens.models.families import registry
from vtokens.models.files import fingerprints
from vtokens.models.files.stored_names import expected_shapes

_LONGROPE = {
  'rope_type': 'longrope',
  'short_factor': [1.0] * 4,
  'long_factor': [2.0] * 4,
}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
_YARN = {'rope_type': 'yarn', 'factor': 4.0, 'mscale': 0.7}
_WINDOW = {'sliding_window': 8}
_QWEN = {'use_sliding_window': True, 'max_window_layers': 2, **_WINDOW}
# Computed before families had files of their own, by `fingerprint` of then.
PINNED = [
  (
    'llama',
    {},
    'd8a00d7288fb8f2273a1ddd5fb63eea1512f7f9fc7f4bb8e2581f508c2c6931d',
  ),
  (
    'llama',
    {'rope_theta': 5e5, 'rope_scaling': _LLAMA3},
    '291a4204bf05dcdebd61d648fb8f9165de47b94ca5826eb3208c8d3aa1aa5974',
  ),
  (
    'mistral',
    _WINDOW,
    'b9bc6a1c3b92d5aa0d2596d66695f5c5753ceea5f5dbafad6e696c69c8d735a1',
  ),
  (
    'ministral',
    _WINDOW,
    '5e7a9bfe31a47317a086e6a0016e51ac1a70dc98c03e133f1eeb8cdb91b4eba5',
  ),
  (
    'qwen2',
    _QWEN,
    '509a9ff7a49be7fc664d84ffa741fff64fc5ee4476d6d44ada75597e19b46a5b',
  ),
  (
    'qwen2',
    {'rope_scaling': _YARN},
    'eb205c96a19d31fb089716d6446b245264eb82f24e7b61278d93a4634d6df2ef',
  ),
  (
    'qwen3',
    {**_QWEN, 'attention_bias': True},
    'cfd1a840a1c4ba82d10dc46b360980068d4c6f7b8c93f41b0196457c58f742be',
  ),
  (
    'phi3',
    {},
    'f8ab2ff02a1d5b1bba1a1b70ca1db73de8e1b09329204da84d258708be516521',
  ),
  (
    'phi3',
    {
      'rope_scaling': _LONGROPE,
      'original_max_position_embeddings': 16,
      **_WINDOW,
    },
    '03eeb8cfa3b21d7f279faf5573aa86b46c732200720b54cba7826cb7a75e2aab',
  ),
  (
    'gemma',
    {'hidden_act': 'gelu_pytorch_tanh'},
    '3391d6ba11ce68bf05e2168efa6b79c1a0991ab1fd4ad9b048b3a75e215d7c5b',
  ),
  (
    'gemma2',
    {},
    '39ff5d32fd5b2ac7467053150022a1ac8f62bcfd35aad53a749767f4fd561ae7',
  ),
  (
    'gemma2',
    {**_WINDOW, 'attn_logit_softcapping': 5},
    '70195dd4b94ad614af140987160fe7263c61963394b0cad5f61a120ca45589c0',
  ),
  (
    'gemma3_text',
    {'sliding_window_pattern': 2, **_WINDOW},
    'a7d75caaddf1a950e03f58a5b5b38d09cc3987579408b10830f4c2294f0ecb18',
  ),
  (
    'smollm3',
    {},
    '660aafbad2f2676fafbfb47cc555b8ff5e3e6c3899db3c699700ebf1b5c91825',
  ),
  (
    'smollm3',
    {'use_sliding_window': True, **_WINDOW},
    '33deba822c0d1e45fac6e8dfc054000d577b59c6ead67c6436826b513e3d9864',
  ),
  (
    'olmo2',
    {},
    'a059fa96ad3938e993a824b7f60337ac3f21cc4e8d47989b4132d3b80cd3004e',
  ),
  (
    'olmo3',
    {'rope_scaling': _YARN, **_WINDOW},
    '63c12f4b676d334852b9eae4ae53647c2367ae0c436f161ccc7f0c6d8de66dee',
  ),
]


class _Source:
  """Tensors of the right shapes, whose content is their name."""

  where = 'memory'

  def __init__(self, config):
    self._shapes = expected_shapes(config)

  def shapes(self):
    return self._shapes

  def sample(self, name):
    return hashlib.sha256(name.encode()).digest()


@pytest.mark.parametrize(('model_type', 'fields', 'expected'), PINNED)
def test_fingerprint(model_type, fields, expected):
  config = registry.from_hf(
    {'model_type': model_type, **small_config.SIZES, **fields}
  )
  assert fingerprints.of_base(_Source(config), config) == expected
