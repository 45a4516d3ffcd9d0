"""FP8 checkpoints against transformers' own dequantisation."""

import numpy as np
import pytest
import quantised_models
import safetensors.torch
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from vtokens.host import errors
from vtokens.models import supported
from vtokens.models.files import hf_directory

Q = 'model.layers.0.self_attn.q_proj'
CONFIG = {'quant_method': 'fp8', 'activation_scheme': 'dynamic'}
_E5M2 = torch.zeros(2, 2).to(torch.float8_e5m2)


def _reference(codes: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
  """By transformers, for a grid of blocks that divide the matrix."""
  grid = scale.reshape(1, 1) if scale.ndim < 2 else scale
  found = Fp8Dequantize(None)._dequantize_one(codes, grid, torch.float32)  # noqa: SLF001
  return found.numpy()


def _cases():
  blocks = {**CONFIG, 'weight_block_size': [32, 16]}
  named = 'weight_scale', 'weight_scale_inv'
  for name in named:
    yield pytest.param(blocks, (32, 16), name, lambda s: s, id=f'block-{name}')
    yield pytest.param(
      CONFIG, None, name, lambda s: s.reshape(()), id=f'tensor-{name}'
    )
  yield pytest.param(CONFIG, None, named[0], lambda s: s.reshape(1), id='one')
  yield pytest.param(CONFIG, (1, 0), named[0], lambda s: s, id='channel')
  yield pytest.param(
    {'quant_method': 'fbgemm_fp8', 'activation_scale_ub': 1200.0},
    *((1, 0), named[0], lambda s: s),
    id='fbgemm',
  )
  yield pytest.param(
    *({**blocks, 'scale_fmt': 'ue8m0'}, (32, 16), named[1]),
    lambda s: s.to(torch.float8_e8m0fnu),
    id='e8m0',
  )
  yield pytest.param(
    *(blocks, (32, 16), named[0], lambda s: s.to(torch.bfloat16)), id='bf16'
  )


@pytest.mark.parametrize(('config', 'block', 'name', 'change'), _cases())
def test_values_are_those_of_transformers(
  tmp_path, config, block, name, change
):
  def convert(weight):
    size = block or weight.shape
    size = size[0], size[1] or weight.shape[1]
    parts = quantised_models.fp8(weight, size)
    return {
      'weight': parts['weight'],
      name: change(parts['scale']),
      'input_scale': torch.ones(()),
    }

  packed = quantised_models.save(tmp_path, convert, config)
  source = hf_directory.SafetensorsSource(tmp_path)
  assert source.format.label.startswith('FP8')
  for weight, parts in packed.items():
    expected = _reference(parts['weight'], parts[name])
    found = source.read(weight)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()
    # In parts that cut blocks.
    part = source.read(weight, slice(3, 41), slice(5, 50))
    assert part.tobytes() == expected[3:41, 5:50].tobytes()


def test_blocks_that_do_not_divide_a_matrix(tmp_path):
  """Each weight has the scale of its block, as in vLLM."""

  def convert(weight):
    parts = quantised_models.fp8(weight, (48, 40))
    return {'weight': parts['weight'], 'weight_scale_inv': parts['scale']}

  packed = quantised_models.save(
    tmp_path, convert, {**CONFIG, 'weight_block_size': [48, 40]}
  )
  source = hf_directory.SafetensorsSource(tmp_path)
  for weight, parts in packed.items():
    codes = parts['weight'].float().numpy()
    scales = parts['weight_scale_inv'].numpy()
    for row, column in ((0, 0), (31, 39), (20, 45), (-1, 63)):
      row %= len(codes)
      expected = codes[row, column] * scales[row // 48, column // 40]
      assert source.read(weight)[row, column] == expected


def test_scales_of_keys_and_values_are_left_out(tmp_path):
  def convert(weight):
    parts = quantised_models.fp8(weight, weight.shape)
    return {'weight': parts['weight'], 'weight_scale': parts['scale'].clone()}

  config = {**CONFIG, 'kv_cache_scheme': 'static'}
  quantised_models.save(tmp_path, convert, config, num_hidden_layers=1)
  before = hf_directory.SafetensorsSource(tmp_path)
  file = tmp_path / 'model.safetensors'
  tensors = {n: t.clone() for n, t in safetensors.torch.load_file(file).items()}
  for name in ('k_scale', 'v_scale', 'k_proj.output_scale'):
    tensors[f'model.layers.0.self_attn.{name}'] = torch.ones(())
  safetensors.torch.save_file(tensors, file)
  source = hf_directory.SafetensorsSource(tmp_path)
  quantised_models.check(source, tmp_path)
  assert source.shapes() == before.shapes()
  lines, loads = supported.describe(str(tmp_path))
  assert loads
  assert 'keys and values (FP8, static scales); vtokens' in '\n'.join(lines)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'fmt': 'e5m2'}, 'quantization_config.fmt is'),
    ({'activation_scheme': 'other'}, 'quantization_config.activation_scheme'),
    ({'weight_block_size': [128]}, 'quantization_config.weight_block_size'),
    ({'kv_cache_scheme': 'other'}, 'quantization_config.kv_cache_scheme is'),
    ({'rotation': 'hadamard'}, 'quantization_config.rotation is'),
    ({'weight_block_size': [16, 16]}, '_proj.weight_scale is F32'),
    ({'quant_method': 'fp9'}, 'quantization_config.quant_method is'),
    ({'modules_to_not_convert': ['q_proj']}, rf'{Q}.*modules_to_not_convert'),
  ],
)
def test_what_is_not_supported(tmp_path, config, message):
  def convert(weight):
    parts = quantised_models.fp8(weight, weight.shape)
    return {'weight': parts['weight'], 'weight_scale': parts['scale']}

  quantised_models.save(
    tmp_path, convert, {**CONFIG, **config}, num_hidden_layers=1
  )
  with pytest.raises(errors.UserError, match=message):
    hf_directory.SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t.pop(f'{Q}.weight_scale'), f'{Q}.weight is F8_E4M3 and has 0'),
    (lambda t: t.pop(f'{Q}.weight'), f'{Q}.weight_scale has no weight'),
    (
      lambda t: t.update({f'{Q}.weight_scale_inv': t[f'{Q}.weight_scale']}),
      f'{Q}.weight is F8_E4M3 and has 2',
    ),
    (
      lambda t: t.update({f'{Q}.weight': _E5M2}),
      f'{Q}.weight is F8_E5M2',
    ),
    (
      lambda t: t.update({f'{Q}.bias': torch.ones(64)}),
      f'surplus: {Q}.bias',
    ),
    (
      lambda t: t.update({'model.layers.0.self_attn.k_scale': torch.ones(())}),
      'surplus: model.layers.0.self_attn.k_scale',
    ),
  ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, change, message):
  def convert(weight):
    parts = quantised_models.fp8(weight, weight.shape)
    return {'weight': parts['weight'], 'weight_scale': parts['scale'].clone()}

  quantised_models.save(tmp_path, convert, CONFIG, num_hidden_layers=1)
  file = tmp_path / 'model.safetensors'
  tensors = {n: t.clone() for n, t in safetensors.torch.load_file(file).items()}
  change(tensors)
  tensors = {n: t.clone() for n, t in tensors.items()}
  safetensors.torch.save_file(tensors, file)
  with pytest.raises(errors.UserError, match=message):
    source = hf_directory.SafetensorsSource(tmp_path)
    quantised_models.check(source, tmp_path)
