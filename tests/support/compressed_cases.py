"""Weights that the compressed-tensors library quantises and dequantises."""

import dataclasses

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import (
  calculate_qparams,
  generate_gparam,
)

DYNAMIC = {
  'num_bits': 8,
  'type': 'float',
  'strategy': 'token',
  'dynamic': True,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A format, and how weights and inputs are quantised."""

  form: str
  weights: dict
  inputs: dict | None = None

  @property
  def scheme(self):
    """For the library."""
    return QuantizationScheme(
      targets=['Linear'], weights=self.weights, input_activations=self.inputs
    )

  @property
  def config(self):
    """`quantization_config`."""
    group = {**self.scheme.model_dump(mode='json'), 'format': self.form}
    return {
      'quant_method': 'compressed-tensors',
      'format': self.form,
      'quantization_status': 'compressed',
      'config_groups': {'group_0': group},
      'ignore': ['lm_head'],
      'kv_cache_scheme': None,
      'global_compression_ratio': 1.9,
      'sparsity_config': {},
      'transform_config': {},
      'version': '0.14.0',
    }


def integers(bits, strategy, size=None, *, symmetric=True):
  """Settings of weights in integers."""
  values = {'num_bits': bits, 'type': 'int', 'strategy': strategy}
  return {**values, 'group_size': size, 'symmetric': symmetric}


FP8 = {'num_bits': 8, 'type': 'float', 'symmetric': True}
FP4 = {'num_bits': 4, 'type': 'float', 'symmetric': True}
INT, PACKED, FLOAT = 'int-quantized', 'pack-quantized', 'float-quantized'
CASES = {
  'int8-channel': Case(INT, integers(8, 'channel'), {**DYNAMIC, 'type': 'int'}),
  'int8-tensor': Case(INT, integers(8, 'tensor')),
  'int8-channel-zeros': Case(INT, integers(8, 'channel', symmetric=False)),
  'int8-group': Case('naive-quantized', integers(8, 'group', 16)),
  'w4a16': Case(PACKED, integers(4, 'group', 16)),
  'w4a16-zeros': Case(PACKED, integers(4, 'group', 32, symmetric=False)),
  'w4a16-channel': Case(PACKED, integers(4, 'channel')),
  'w8a16': Case(PACKED, integers(8, 'group', 32)),
  'w8a16-zeros': Case(PACKED, integers(8, 'channel', symmetric=False)),
  'fp8-tensor': Case(FLOAT, {**FP8, 'strategy': 'tensor'}, DYNAMIC),
  'fp8-channel': Case(FLOAT, {**FP8, 'strategy': 'channel'}, DYNAMIC),
  'fp8-block': Case(
    FLOAT, {**FP8, 'strategy': 'block', 'block_structure': [32, 16]}
  ),
  'nvfp4': Case(
    'nvfp4-pack-quantized',
    {**FP4, 'strategy': 'tensor_group', 'group_size': 16},
  ),
  'mxfp4': Case(
    'mxfp4-pack-quantized', {**FP4, 'strategy': 'group', 'group_size': 32}
  ),
}


def convert(case):
  """The function that quantises a weight with the library."""
  args = case.scheme.weights

  def compress(weight):
    strategy = args.strategy
    if strategy == 'block':
      height, width = args.block_structure
      blocks = weight.unflatten(0, (-1, height)).unflatten(2, (-1, width))
      low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.group_size:
      groups = weight.unflatten(1, (-1, args.group_size))
      low, high = groups.amin(2), groups.amax(2)
    elif strategy == 'channel':
      low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    else:
      low, high = weight.min().reshape(1), weight.max().reshape(1)
    extra = {}
    whole = None
    if strategy == 'tensor_group':
      whole = generate_gparam(weight.min(), weight.max())
      extra['weight_global_scale'] = whole
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    state = {
      'weight': weight,
      'weight_scale': scale,
      'weight_zero_point': zero,
      **extra,
    }
    library = BaseCompressor.get_value_from_registry(case.form)
    return library.compress(state, case.scheme)

  return compress


def reference(case, parts):
  """The library's values in float32."""
  args = case.scheme.weights
  library = BaseCompressor.get_value_from_registry(case.form)
  if args.type == 'float' and args.num_bits == 4:
    packed = parts['weight_packed']
    rows, columns = packed.shape
    codes = unpack_fp4_from_uint8(packed, rows, 2 * columns, torch.float32)
    scale = parts['weight_scale']
    if scale.dtype == torch.uint8:
      scale = decompress_mx_scale(scale)
    return dequantize(
      codes,
      scale.float(),
      args=args,
      global_scale=parts.get('weight_global_scale'),
      dtype=torch.float32,
    )
  scale = parts['weight_scale'].float()
  state = library.decompress({**parts, 'weight_scale': scale}, case.scheme)
  return state['weight']
