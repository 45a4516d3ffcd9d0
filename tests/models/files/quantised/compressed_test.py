"""compressed-tensors checkpoints against the library that writes them."""

import numpy as np
import pytest
import quantised_models
import torch
from compressed_cases import CASES, DYNAMIC, convert, integers, reference
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize

from vtokens.host import errors
from vtokens.models.files import hf_directory


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_are_those_of_the_library(tmp_path, case):
  packed = quantised_models.save(
    tmp_path, convert(case), case.config, num_hidden_layers=1
  )
  source = hf_directory.SafetensorsSource(tmp_path)
  quantised_models.check(source, tmp_path)
  for name, parts in packed.items():
    expected = reference(case, parts).numpy()
    assert expected.dtype == np.float32
    found = source.read(name)
    assert found.tobytes() == expected.tobytes()
    # In parts that cut groups, blocks and words.
    part = source.read(name, slice(3, 30), slice(5, 50))
    assert part.tobytes() == expected[3:30, 5:50].tobytes()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_scales_in_16_bits(tmp_path, dtype):
  """Values of a base in bfloat16 are the library's own, rounded once."""
  case = CASES['w4a16-zeros']

  def compress(weight):
    parts = dict(convert(case)(weight))
    parts['weight_scale'] = parts['weight_scale'].to(dtype)
    return parts

  packed = quantised_models.save(
    tmp_path, compress, case.config, num_hidden_layers=1
  )
  source = hf_directory.SafetensorsSource(tmp_path)
  library = BaseCompressor.get_value_from_registry(case.form)
  for name, parts in packed.items():
    theirs = library.decompress(dict(parts), case.scheme)['weight']
    assert theirs.dtype == dtype
    ours = torch.from_numpy(source.read(name))
    assert torch.equal(ours.to(dtype), theirs)


@pytest.mark.parametrize('name', ['int8-channel', 'fp8-tensor', 'w4a16'])
def test_the_status_of_older_files(tmp_path, name):
  """Their weights are compressed all the same, or else refused."""
  case = CASES[name]
  config = {**case.config, 'quantization_status': 'frozen'}
  sizes = {'num_hidden_layers': 1}
  packed = quantised_models.save(tmp_path, convert(case), config, **sizes)
  source = hf_directory.SafetensorsSource(tmp_path)
  for weight, parts in packed.items():
    expected = reference(case, parts).numpy()
    assert source.read(weight).tobytes() == expected.tobytes()

  def kept(weight):
    scale = convert(case)(weight)['weight_scale']
    return {'weight': weight, 'weight_scale': scale}

  quantised_models.save(tmp_path, kept, config, **sizes)
  with pytest.raises(errors.UserError, match=r'weight is F32|no weight_packed'):
    hf_directory.SafetensorsSource(tmp_path)


def test_quantised_keys_and_values(tmp_path):
  case = CASES['fp8-tensor']
  scheme = {'num_bits': 8, 'type': 'float', 'strategy': 'tensor'}
  config = {**case.config, 'kv_cache_scheme': {**scheme, 'dynamic': False}}
  quantised_models.save(tmp_path, convert(case), config, num_hidden_layers=1)
  source = hf_directory.SafetensorsSource(tmp_path)
  assert source.format.cache == 'float8, static scales'


def test_groups_in_any_order(tmp_path):
  """`g_idx`, which the library's version 0.16 still read."""
  case = CASES['w4a16-zeros']
  order = torch.randperm(64, generator=torch.manual_seed(0)) // 32

  def compress(weight):
    parts = dict(convert(case)(weight))
    if weight.shape[1] == 64:
      parts['weight_g_idx'] = order.int()
    else:
      parts['weight_g_idx'] = torch.full((weight.shape[1],), -1).int()
    return parts

  weights = {**case.config['config_groups']['group_0']['weights']}
  config = case.config
  config['config_groups']['group_0']['weights'] = {
    **weights,
    'actorder': 'group',
  }
  packed = quantised_models.save(tmp_path, compress, config)
  source = hf_directory.SafetensorsSource(tmp_path)
  # As the library did: sort columns by group, dequantise, sort back.
  places = torch.argsort(order, stable=True)
  for name, parts in packed.items():
    plain = {k: v for k, v in parts.items() if k != 'weight_g_idx'}
    if parts['weight_g_idx'][0] == -1:
      expected = reference(case, plain)
    else:
      library = BaseCompressor.get_value_from_registry(case.form)
      one = {**plain, 'weight_scale': torch.ones_like(plain['weight_scale'])}
      del one['weight_zero_point']
      codes = library.decompress(
        one, QuantizationScheme(targets=[], weights=integers(4, 'group', 32))
      )['weight'][:, places]
      state = library.decompress(dict(plain), case.scheme)
      sorted_ = dequantize(
        codes, plain['weight_scale'], state['weight_zero_point'],
        case.scheme.weights,
      )  # fmt: skip
      expected = torch.empty_like(sorted_)
      expected[:, places] = sorted_
    assert torch.equal(torch.from_numpy(source.read(name)), expected)
    part = source.read(name, slice(0, 9), slice(3, 40))
    assert torch.equal(torch.from_numpy(part), expected[:9, 3:40])


def test_groups_of_several_kinds(tmp_path):
  """A name comes before an expression, an expression before a class."""
  four, eight = CASES['w4a16'], CASES['w8a16']
  config = {**four.config, 'format': 'mixed-precision'}
  a, b = (one.config['config_groups']['group_0'] for one in (four, eight))
  groups = {'a': a, 'b': {**b, 'targets': ['re:.*_proj']}}
  packed = quantised_models.save(
    tmp_path, convert(eight), {**config, 'config_groups': groups}
  )
  source = hf_directory.SafetensorsSource(tmp_path)
  for name, parts in packed.items():
    expected = reference(eight, parts).numpy()
    assert source.read(name).tobytes() == expected.tobytes()


def _config(**fields):
  return {**CASES['w4a16'].config, **fields}


def _weights(**fields):
  config = CASES['w4a16'].config
  config['config_groups']['group_0']['weights'] |= fields
  return config


def _group(**fields):
  config = CASES['w4a16'].config
  config['config_groups']['group_0'] |= fields
  return config


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (_config(format='marlin-24'), r'quantization_config\.format is'),
    (_config(kv_cache_scheme=8), r'kv_cache_scheme is 8, expected an object'),
    (_config(quantization_status='calibration'), r'quantization_status is'),
    (_config(transform_config={'groups': {'R1': 1}}), r'transform_config is'),
    (_config(sparsity_config={'format': 'sparse'}), r'sparsity_config.format'),
    (_config(other=1), r'quantization_config\.other is 1'),
    (_config(config_groups={}), r'config_groups is'),
    (_weights(num_bits=3), r'group_0\.weights\.num_bits is 3'),
    (_weights(type='float'), r'weights\.type is'),
    (_weights(strategy='token'), r'weights\.strategy is'),
    (_weights(strategy=['group']), r'weights\.strategy is'),
    (_group(weights=None), r'group_0\.weights is None'),
    (_config(ignore=['re:(']), r'ignore is .re:\(.*no regular expression'),
    (_weights(group_size=0), r'weights\.group_size is'),
    (_weights(group_size=8), r'weight_scale is F32 of shape'),
    (_weights(symmetric=False), r'no weight_zero_point beside it'),
    (_group(output_activations=DYNAMIC), r'group_0\.output_activations is'),
    (_group(targets=['re:.*q_proj']), r'no target in .*config_groups'),
    (_config(ignore=['re:.*q_proj']), r'leaves .*q_proj as it is'),
  ],
)
def test_what_is_not_supported(tmp_path, config, message):
  quantised_models.save(
    tmp_path, convert(CASES['w4a16']), config, num_hidden_layers=1
  )
  with pytest.raises(errors.UserError, match=message):
    hf_directory.SafetensorsSource(tmp_path)
