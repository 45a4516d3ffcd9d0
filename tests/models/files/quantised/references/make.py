"""Remakes the references with the libraries that define the formats.

    pip install gptqmodel bitsandbytes torchao
    pip download --no-deps --no-binary :all: autoawq && tar xf autoawq-*.tar.gz
    pip download --no-deps fbgemm-gpu-genai && unzip fbgemm_gpu_genai-*.whl
    python make.py PATH_OF_AUTOAWQ PATH_OF_FBGEMM_GPU

Each file has for each case the stored tensors of one matrix [64, 64], as
CASE/END, its values by the library in float32, as CASE/expected, and in its
metadata `quantization_config` of each case and the library's version.
"""

import functools
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import safetensors.torch
import torch

HERE = pathlib.Path(__file__).parent
SIZE = 64


def weight():
  """The matrix."""
  return torch.randn(SIZE, SIZE, generator=torch.manual_seed(0)) * 0.1


def write(library, version, cases):
  """Writes a file.

  Args:
    library: name of the package.
    version: its version.
    cases: name -> config, stored tensors and values.
  """
  tensors, metadata = {}, {'version': version}
  for case, (config, parts, expected) in cases.items():
    assert expected.dtype == torch.float32
    assert expected.shape == (SIZE, SIZE)
    assert (expected - weight()).abs().mean() < 0.05
    metadata[case] = json.dumps(config)
    stored = {**parts, 'expected': expected}
    for end, tensor in stored.items():
      tensors[f'{case}/{end}'] = tensor.contiguous().clone()
  file = HERE / f'{library}.safetensors'
  safetensors.torch.save_file(tensors, file, metadata)


def levels(size, bits, *, symmetric, order=None):
  """Scales and zero points of groups of columns, both [outputs, groups]."""
  columns = torch.arange(SIZE) if order is None else torch.argsort(order)
  groups = weight()[:, columns].unflatten(1, (-1, size))
  low = groups.amin(2).clamp(max=0)
  high = groups.amax(2).clamp(min=0)
  most = 2**bits - 1
  if symmetric:
    scale = 2 * groups.abs().amax(2) / most
    zero = torch.full_like(scale, 2 ** (bits - 1))
  else:
    scale = (high - low) / most
    zero = (-low / scale).round().clamp(1, most)
  return scale.half().float(), zero


def gptq():
  """By GPTQModel."""
  from gptqmodel.nn_modules.qlinear.torch import TorchLinear
  from gptqmodel.quantization import QuantizeConfig
  from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

  cases = {}
  for bits, size, symmetric, ordered, form in (
    (4, 32, True, False, 'gptq'),
    (4, 32, False, False, 'gptq'),
    (4, 16, True, True, 'gptq'),
    (4, 32, False, True, 'gptq_v2'),
    (4, -1, True, False, 'gptq'),
    (8, 32, False, True, 'gptq'),
    (2, 16, False, False, 'gptq_v2'),
  ):
    made = TorchLinear(
      *(bits, size, symmetric, ordered, SIZE, SIZE),
      register_buffers=True,
    )
    width = size if size > 0 else SIZE
    order = torch.arange(SIZE)
    if ordered:
      order = torch.randperm(SIZE, generator=torch.manual_seed(1))
    order = order // width
    scale, zero = levels(width, bits, symmetric=symmetric, order=order)
    linear = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float16)
    linear.weight.data = weight().half()
    made.pack(linear, scale, zero, order.int())
    made.post_init()
    made.scales = made.scales.float()
    expected = made.dequantize_weight().float().T
    made.scales = made.scales.half()
    if form == 'gptq':
      convert_gptq_v2_to_v1_format_module(
        made, QuantizeConfig(bits=bits, group_size=size)
      )
    config = {
      'quant_method': 'gptq',
      'bits': bits,
      'group_size': size,
      'sym': symmetric,
      'desc_act': ordered,
      'checkpoint_format': form,
      'lm_head': False,
      'pack_dtype': 'int32',
    }
    parts = {
      n: getattr(made, n) for n in ('qweight', 'qzeros', 'scales', 'g_idx')
    }
    name = f'{bits}-{size}-{"sym" if symmetric else "asym"}-{form}'
    cases[name + ('-ordered' if ordered else '')] = config, parts, expected
  return cases


def module(name, file):
  """A module of a package that cannot be imported as a whole."""
  spec = importlib.util.spec_from_file_location(name, file)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


def awq(path):
  """By AutoAWQ, whose package imports modules that newer libraries lack."""
  packing = module('packing', path / 'awq/utils/packing_utils.py')
  cases = {}
  for size in (16, 64):
    scale, zero = levels(size, 4, symmetric=False)
    codes = (weight() / scale.repeat_interleave(size, 1)).round()
    codes = (codes + zero.repeat_interleave(size, 1)).clamp(0, 15).int().T
    # As awq/modules/linear/gemm.py packs, WQLinear_GEMM.from_linear.
    parts = {'scales': scale.half().T}
    for name, numbers in (('qweight', codes), ('qzeros', zero.int().T)):
      words = torch.zeros(len(numbers), SIZE // 8, dtype=torch.int32)
      for column in range(SIZE // 8):
        for i, place in enumerate(packing.AWQ_ORDER):
          words[:, column] |= numbers[:, column * 8 + place] << (i * 4)
      parts[name] = words
    expected = packing.dequantize_gemm(
      parts['qweight'], parts['qzeros'], parts['scales'].float(), 4, size
    ).T
    config = {
      'quant_method': 'awq',
      'bits': 4,
      'group_size': size,
      'zero_point': True,
      'version': 'gemm',
      'modules_to_not_convert': None,
    }
    cases[f'group-{size}'] = config, parts, expected
  return cases


def bitsandbytes():
  """By its code for CPUs."""
  import bitsandbytes as bnb

  cases = {}
  for kind in ('nf4', 'fp4'):
    for double in (False, True):
      codes, state = bnb.functional.quantize_4bit(
        weight(), blocksize=64, compress_statistics=double, quant_type=kind
      )
      config = {
        'quant_method': 'bitsandbytes',
        'load_in_4bit': True,
        '_load_in_4bit': True,
        'bnb_4bit_quant_type': kind,
        'bnb_4bit_use_double_quant': double,
        'bnb_4bit_compute_dtype': 'bfloat16',
        'llm_int8_threshold': 6.0,
      }
      parts = {'weight': codes}
      for name, tensor in state.as_dict(packed=True).items():
        parts[f'weight.{name}'] = tensor
      expected = bnb.functional.dequantize_4bit(codes, state)
      name = kind + ('-double' if double else '')
      cases[name] = config, parts, expected
  codes, scale, _ = bnb.functional.int8_vectorwise_quant(weight().half())
  cases['int8'] = (
    {'quant_method': 'bitsandbytes', 'load_in_8bit': True},
    {
      'weight': codes,
      'SCB': scale,
      'weight_format': torch.tensor(0, dtype=torch.uint8),
    },
    bnb.functional.int8_vectorwise_dequant(codes, scale),
  )
  return cases


def torchao(path):
  """By the classes of its tensors.

  Its class Int4Tensor quantises by a package for GPUs. The functions are the
  same in fbgemm_gpu's file of Python code, whose imports are for GPUs, too.
  torchao has the way back in Python.
  """
  import transformers
  from torchao.prototype.gptq.api import _int4_row_dequantize_zp
  from torchao.prototype.safetensors import safetensors_support
  from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    quantize_,
  )
  from torchao.quantization.quantize_.workflows.int4 import int4_tensor

  gpu = 'fbgemm_gpu.experimental.gemm.triton_gemm.fp8_gemm'
  sys.modules[gpu] = types.SimpleNamespace(quantize_fp8_row=None)
  source = path / 'experimental/gen_ai/quantize.py'
  int4_code = module('fbgemm_quantize', source)
  int4_tensor.int4_row_quantize_zp = int4_code.int4_row_quantize_zp
  int4_tensor.pack_int4 = int4_code.pack_int4
  cases = {}
  for name, settings in (
    ('int8', Int8WeightOnlyConfig()),
    ('int8-group', Int8WeightOnlyConfig(granularity=PerGroup(16))),
    ('int8-dynamic', Int8DynamicActivationInt8WeightConfig()),
    ('float8', Float8WeightOnlyConfig()),
    ('int4', Int4WeightOnlyConfig(group_size=32)),
    (
      'intx-int4',
      IntxWeightOnlyConfig(
        torch.int4, PerGroup(16), mapping_type=MappingType.ASYMMETRIC
      ),
    ),
    (
      'int8-int4',
      Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
      ),
    ),
  ):
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE, bias=False))
    model[0].weight.data = weight()
    quantize_(model, settings)
    made = model[0].weight
    state, facts = safetensors_support.flatten_tensor_state_dict(
      model.state_dict()
    )
    config = transformers.TorchAoConfig(settings).to_dict()
    parts = {end.removeprefix('0.'): tensor for end, tensor in state.items()}
    # The test puts it into the metadata of its file.
    config['metadata'] = facts['0.weight']
    if name == 'int4':
      codes, _, _ = int4_code.int4_row_quantize_zp(weight(), 32)
      expected = _int4_row_dequantize_zp(codes, made.scale, made.zero_point, 32)
    else:
      expected = made.dequantize()
    cases[name] = config, parts, expected
  return cases


if __name__ == '__main__':
  autoawq, fbgemm = map(pathlib.Path, sys.argv[1:])
  for library, make in (
    ('bitsandbytes', bitsandbytes),
    ('gptqmodel', gptq),
    ('torchao', functools.partial(torchao, fbgemm)),
  ):
    write(library, importlib.metadata.version(library), make())
  write('autoawq', autoawq.name.partition('-')[2], awq(autoawq))
