"""Queries, keys and values that one tensor has by head."""

import dataclasses

import decoder_cases
import numpy as np
import pytest
import safetensors.torch
import torch

from vtokens import config
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.files import hf_directory, stored_names, weights


def test_masks_in_old_files_are_not_read(tmp_path):
  """Published files of Pythia have them, of types that weights have not."""
  decoder_cases.save(tmp_path, 'gpt_neox')
  before = frozen_base.open_base(config.Base(str(tmp_path))).fingerprint
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  layer = 'gpt_neox.layers.0.attention'
  tensors[f'{layer}.bias'] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
  tensors[f'{layer}.masked_bias'] = torch.tensor(-1e9)
  safetensors.torch.save_file(tensors, file)
  assert frozen_base.open_base(config.Base(str(tmp_path))).fingerprint == before
  tensors[f'{layer}.other'] = torch.ones(2)
  safetensors.torch.save_file(tensors, file)
  with pytest.raises(errors.UserError, match=r'surplus: .*attention\.other'):
    frozen_base.open_base(config.Base(str(tmp_path)))


@pytest.mark.parametrize('name', ['gpt_neox', 'falcon', 'falcon_multi_query'])
def test_rows_of_some_heads(name, tmp_path):
  """What a device that has a part of the heads reads, as torch splits it."""
  reference = decoder_cases.save(tmp_path, name)
  architecture = hf_directory.read_config(tmp_path)
  source = hf_directory.SafetensorsSource(tmp_path)
  c = architecture
  groups, per = c.num_kv_heads, c.num_heads // c.num_kv_heads
  (fused,) = (
    w
    for n, w in reference.named_parameters()
    if n.endswith('1.attention.query_key_value.weight')
    or n.endswith('1.self_attention.query_key_value.weight')
  )
  split = fused.detach().numpy().reshape(groups, per + 2, c.head_dim, -1)
  whole = {
    'q': split[:, :per].reshape(c.num_heads, c.head_dim, -1),
    'k': split[:, per],
    'v': split[:, per + 1],
  }
  by_path = {
    '.'.join(map(str, path)): weight
    for path, (weight, _) in stored_names.weights_of(architecture).items()
  }
  for part, expected in whole.items():
    weight = by_path[f'layers.attention.{part}']
    heads = len(expected)
    some = slice(heads // 2, heads)
    columns = slice(8, 24)
    out = np.empty((16, heads - heads // 2, c.head_dim), np.float32)
    weight.read(source, 1, (columns, some, slice(None)), out, lambda _: None)
    np.testing.assert_array_equal(
      out, expected[some, :, columns].transpose(2, 0, 1)
    )


def test_a_tensor_of_too_few_heads(tmp_path):
  decoder_cases.save(tmp_path, 'falcon')
  architecture = hf_directory.read_config(tmp_path)
  source = hf_directory.SafetensorsSource(tmp_path)
  more = dataclasses.replace(architecture, num_kv_heads=4)
  with pytest.raises(errors.UserError, match=r'query_key_value\.weight: shape'):
    weights.check_shapes(source, more)
