"""MXFP4 experts against transformers' own dequantisation."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from vtokens.host import errors
from vtokens.models.files import hf_directory

NAME = 'model.layers.0.mlp.experts.gate_up_proj'
CONFIG = {'quant_method': 'mxfp4', 'modules_to_not_convert': ['lm_head']}
EXPERTS, OUTPUTS, GROUPS = 3, 12, 2


def _parts():
  random = torch.manual_seed(0)
  shape = EXPERTS, OUTPUTS, GROUPS
  blocks = torch.randint(0, 256, (*shape, 16), generator=random)
  scales = torch.randint(110, 135, shape, generator=random)
  return {'blocks': blocks.byte(), 'scales': scales.byte()}


def _open(directory, parts, config=CONFIG):
  tensors = {f'{NAME}_{end}': tensor for end, tensor in parts.items()}
  tensors[f'{NAME}_bias'] = torch.ones(EXPERTS, OUTPUTS)
  safetensors.torch.save_file(tensors, directory / 'model.safetensors')
  values = {'model_type': 'llama', 'quantization_config': config}
  (directory / 'config.json').write_text(json.dumps(values))
  return hf_directory.SafetensorsSource(directory)


def test_values_are_those_of_transformers(tmp_path):
  parts = _parts()
  source = _open(tmp_path, parts)
  expected = convert_moe_packed_tensors(
    parts['blocks'], parts['scales'], dtype=torch.float32
  ).numpy()
  assert source.shapes()[NAME] == expected.shape == (3, 64, 12)
  found = source.read(NAME)
  assert found.dtype == np.float32
  assert np.array_equal(found, expected.reshape(-1, 12))
  # Rows of one matrix, counted over all.
  part = source.read(NAME, slice(64 + 5, 64 + 60), slice(3, 11))
  assert np.array_equal(part, expected[1, 5:60, 3:11])
  assert source.read(f'{NAME}_bias').shape == (3, 12)


def test_a_single_expert(tmp_path):
  parts = {name: tensor[:1].clone() for name, tensor in _parts().items()}
  source = _open(tmp_path, parts)
  expected = convert_moe_packed_tensors(**parts, dtype=torch.float32).numpy()
  found = source.read(NAME, slice(0, 64), slice(0, 12))
  assert np.array_equal(found, expected[0])


def test_what_does_not_fit(tmp_path):
  parts = _parts()
  with pytest.raises(errors.UserError, match='_scales is U8 of shape'):
    _open(tmp_path, {**parts, 'scales': parts['scales'][:, 1:].clone()})
  with pytest.raises(errors.UserError, match='no scales beside it'):
    _open(tmp_path, {'blocks': parts['blocks']})
  with pytest.raises(errors.UserError, match=r'quantization_config\.bits'):
    _open(tmp_path, parts, {**CONFIG, 'bits': 4})
