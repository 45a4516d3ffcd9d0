"""Formats against what the libraries that define them made of a matrix.

`references/make.py` makes the files, and says of which versions.
"""

import json
import pathlib

import numpy as np
import pytest
import quantised_models
import safetensors.torch
import torch

from vtokens.host import errors
from vtokens.models.files import hf_directory

NAME = 'model.layers.0.mlp.up_proj'
_FILES = sorted(pathlib.Path(__file__).parent.glob('references/*.safetensors'))


def _cases():
  for file in _FILES:
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, 'pt') as opened:
      metadata = opened.metadata()
    for case in sorted({name.partition('/')[0] for name in tensors}):
      parts = {
        name.partition('/')[2]: tensor
        for name, tensor in tensors.items()
        if name.startswith(f'{case}/')
      }
      config = json.loads(metadata[case])
      yield f'{file.stem}-{case}', (config, parts, parts.pop('expected'))


CASES = dict(_cases())


def _open(directory, config, parts, file=None):
  tensors = {f'{NAME}.{end}': tensor for end, tensor in parts.items()}
  config = {**config}
  metadata = {f'{NAME}.weight': config.pop('metadata', '')}
  safetensors.torch.save_file(
    tensors, directory / 'model.safetensors', metadata
  )
  values = {'model_type': 'llama', 'quantization_config': config}
  if file:
    del config['quant_method'], values['quantization_config']
    (directory / file).write_text(json.dumps(config))
  (directory / 'config.json').write_text(json.dumps(values))
  return hf_directory.SafetensorsSource(directory)


@pytest.mark.parametrize('case', CASES)
def test_values_are_those_of_the_library(tmp_path, case):
  config, parts, expected = CASES[case]
  source = _open(tmp_path, config, parts)
  assert source.shapes() == {f'{NAME}.weight': (64, 64)}
  expected = expected.numpy()
  found = source.read(f'{NAME}.weight')
  assert found.dtype == np.float32
  assert found.tobytes() == expected.tobytes()
  for rows, columns in (
    (slice(3, 42), slice(5, 51)),
    (slice(63, 64), slice(1)),
  ):
    part = np.ascontiguousarray(source.read(f'{NAME}.weight', rows, columns))
    assert part.tobytes() == expected[rows, columns].tobytes()


@pytest.mark.parametrize(
  ('case', 'fields', 'message'),
  [
    ('gptqmodel-4-32-sym-gptq', {'bits': 3}, 'quantization_config.bits is 3'),
    ('gptqmodel-4-32-sym-gptq', {'dynamic': {'+:a': {}}}, r'config\.dynamic'),
    ('gptqmodel-4-32-sym-gptq', {'checkpoint_format': 'marlin'}, 'marlin'),
    ('gptqmodel-4-32-sym-gptq', {'group_size': 16}, r'scales is F16'),
    ('gptqmodel-4-32-sym-gptq', {'rotation': 'random'}, r'\.rotation is'),
    ('gptqmodel-4-32-sym-gptq', {'new': 1}, r'\.new is 1'),
    (
      'gptqmodel-4-32-sym-gptq',
      {'checkpoint_format': 'gptq', 'format': 'gptq_v2'},
      r"\.format is 'gptq_v2', not supported; supported: 'gptq'",
    ),
    ('autoawq-group-16', {'version': 'gemv'}, r'\.version is .gemv'),
    ('autoawq-group-16', {'bits': 3}, r'\.bits is 3'),
    ('autoawq-group-16', {'q_group_size': 32}, r'\.q_group_size is 32'),
    ('autoawq-group-16', {'zero_point': False}, r'\.zero_point is False'),
    ('bitsandbytes-nf4', {'load_in_8bit': True}, 'load_in_4bit is True'),
    ('torchao-int8', {'metadata': '{}'}, 'metadata of the file does not say'),
    (
      'torchao-int4',
      {
        'metadata': '{"_type": "Int4TilePackedTo4dTensor", '
        '"_data": {"block_size": [1, 32]}}'
      },
      'Int4TilePackedTo4dTensor of torchao, not supported',
    ),
    (
      'torchao-int4',
      {'metadata': '{"_type": "Int4Tensor", "_data": {"block_size": [1, 48]}}'},
      r'block_size in the metadata is \[1, 48\]',
    ),
    (
      'torchao-int4',
      {'metadata': '{"_type": "Int4Tensor", "_data": {"block_size": [1, 16]}}'},
      r'_weight_scale is F32 .*expected .* of shape \[4, 64\]',
    ),
    ('bitsandbytes-nf4', {'bnb_4bit_quant_storage': 'bfloat16'}, 'storage is'),
  ],
)  # fmt: skip
def test_what_is_not_supported(tmp_path, case, fields, message):
  config, parts, _ = CASES[case]
  with pytest.raises(errors.UserError, match=message):
    _open(tmp_path, {**config, **fields}, parts)


@pytest.mark.parametrize(
  'case', ['gptqmodel-4-32-asym-gptq', 'autoawq-group-16']
)
def test_fields_of_auto_round(tmp_path, case):
  """It writes both formats, with fields of its own."""
  config, parts, expected = CASES[case]
  fields = {
    'autoround_version': '0.16.1',
    'provider': 'auto-round',
    'data_type': 'int',
    'iters': 200,
    'enable_quanted_input': False,
    'low_gpu_mem_usage': True,
  }
  source = _open(tmp_path, {**config, **fields}, parts)
  found = source.read(f'{NAME}.weight')
  assert found.tobytes() == expected.numpy().tobytes()
  for name, value in (('data_type', 'mx_fp'), ('act_bits', 8)):
    with pytest.raises(errors.UserError, match=rf'config\.{name} is '):
      _open(tmp_path, {**config, **fields, name: value}, parts)


@pytest.mark.parametrize(
  ('case', 'file'),
  [
    ('gptqmodel-4-32-sym-gptq', 'quantize_config.json'),
    ('autoawq-group-16', 'quant_config.json'),
  ],
)
def test_settings_in_a_file_of_their_own(tmp_path, case, file):
  config, parts, expected = CASES[case]
  source = _open(tmp_path, config, parts, file)
  found = source.read(f'{NAME}.weight')
  assert found.tobytes() == expected.numpy().tobytes()
  with pytest.raises(errors.UserError, match=rf'{file}\.bits is 3'):
    _open(tmp_path, {**config, 'bits': 3}, parts, file)


def test_a_part_is_missing(tmp_path):
  for case, name in (
    ('gptqmodel-4-16-sym-gptq-ordered', 'g_idx'),
    ('autoawq-group-16', 'qzeros'),
    ('torchao-int4', '_weight_zero_point'),
    ('bitsandbytes-nf4-double', 'weight.nested_absmax'),
  ):
    config, parts, _ = CASES[case]
    left = {end: tensor for end, tensor in parts.items() if end != name}
    with pytest.raises(errors.UserError, match=f'no {name} beside it'):
      _open(tmp_path, config, left)


def test_a_zero_point_of_which_programs_disagree(tmp_path):
  config, parts, _ = CASES['gptqmodel-4-32-asym-gptq']
  zeros = parts['qzeros'].clone()
  zeros[0, 0] = -1
  source = _open(tmp_path, config, {**parts, 'qzeros': zeros})
  with pytest.raises(errors.UserError, match=f'{NAME}.qzeros: programs read'):
    source.read(f'{NAME}.weight')


def test_an_order_with_a_group_that_is_not_there(tmp_path):
  config, parts, _ = CASES['gptqmodel-4-16-sym-gptq-ordered']
  order = torch.full_like(parts['g_idx'], 4)
  with pytest.raises(errors.UserError, match=r'g_idx is I32.*from 4 to 4'):
    _open(tmp_path, config, {**parts, 'g_idx': order})


def test_the_fingerprint_samples_codes_in_one_column(tmp_path):
  config, parts, _ = CASES['bitsandbytes-nf4']
  state = json.dumps({'shape': [512, 512], 'blocksize': 64}).encode()
  parts = {
    **parts,
    'weight.absmax': torch.ones(4096),
    'weight.quant_state.bitsandbytes__nf4': torch.tensor(list(state)).byte(),
  }

  def sample(codes):
    source = _open(tmp_path, config, {**parts, 'weight': codes.reshape(-1, 1)})
    return source.sample(f'{NAME}.weight')

  codes = torch.zeros(131072, dtype=torch.uint8)
  first = sample(codes)
  assert sample(codes) == first
  # Few codes change: not those at the ends and thirds.
  codes[100::1000] = 1
  assert sample(codes) != first


# One of each library.
@pytest.mark.parametrize(
  'case',
  [
    'autoawq-group-16',
    'bitsandbytes-nf4-double',
    'gptqmodel-8-32-asym-gptq-ordered',
  ],
)
def test_a_whole_model(tmp_path, case):
  """Every matrix of the layers is the one of the reference."""
  config, parts, expected = CASES[case]
  sizes = {'intermediate_size': 64, 'num_key_value_heads': 4}
  packed = quantised_models.save(tmp_path, lambda _: parts, config, **sizes)
  source = hf_directory.SafetensorsSource(tmp_path)
  quantised_models.check(source, tmp_path)
  assert len(packed) == 14
  for name in packed:
    assert source.read(name).tobytes() == expected.numpy().tobytes()
