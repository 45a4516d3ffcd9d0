"""Tiny models whose files are quantised in each format that is read."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import compressed_cases
import quantised_models
import safetensors.torch
import torch
from quantised_models import Parts

_REFERENCES = (
  pathlib.Path(__file__).parents[1] / 'models/files/quantised/references'
)
# Each matrix of these models is the matrix of a reference, [64, 64].
_SQUARE = {'intermediate_size': 64, 'num_key_value_heads': 4}
_GPT_OSS = {
  'model_type': 'gpt_oss',
  'intermediate_size': 64,
  'head_dim': 16,
  'num_local_experts': 4,
  'num_experts_per_tok': 2,
  'swiglu_limit': 0.7,
}
_DEEPSEEK_V3 = {
  'model_type': 'deepseek_v3',
  'num_key_value_heads': 4,
  'kv_lora_rank': 32,
  'q_lora_rank': 48,
  'qk_nope_head_dim': 16,
  'qk_rope_head_dim': 8,
  'v_head_dim': 16,
  'n_routed_experts': 4,
  'num_experts_per_tok': 2,
  'n_group': 2,
  'topk_group': 1,
  'moe_intermediate_size': 32,
  'first_k_dense_replace': 1,
}
# Files have a matrix for each expert, transformers one tensor for all.
_QWEN3_MOE = {
  'model_type': 'qwen3_moe',
  'head_dim': 16,
  'num_experts': 4,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 64,
}
_EXPERTS = ('experts.gate_up_proj', 'experts.down_proj')
BLOCKS = {
  'quant_method': 'fp8',
  'activation_scheme': 'dynamic',
  'weight_block_size': [32, 16],
}


@dataclasses.dataclass(frozen=True)
class Deployed:
  """A quantised model.

  Attributes:
    convert: function from a weight to its stored tensors.
    config: `quantization_config`.
    overrides: of `tiny_models.save`.
    quantised: see `quantised_models.save`.
    metadata: what the file says of each quantised weight; '' for nothing.
  """

  convert: Callable[[torch.Tensor], Parts]
  config: Mapping[str, Any]
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  quantised: tuple[str, ...] = ('_proj.weight',)
  metadata: str = ''


def _reference(library: str, case: str, *scales: str) -> Deployed:
  """A model of a library's matrix.

  Args:
    library: name of the file of references.
    case: the matrix.
    *scales: ends of the names of the scales. They become 0 in the first row of
      a weight that has no values there; see `tiny_models.silence`.
  """
  file = _REFERENCES / f'{library}.safetensors'
  with safetensors.safe_open(file, 'pt') as opened:
    config = json.loads(opened.metadata()[case])
    parts = {
      name.removeprefix(f'{case}/'): opened.get_tensor(name)
      for name in opened.keys()  # noqa: SIM118 (no mapping)
      if name.startswith(f'{case}/')
    }
  del parts['expected']

  def convert(weight: torch.Tensor) -> Parts:
    found = {name: part.clone() for name, part in parts.items()}
    if not weight[0].any():
      for scale in scales:
        # Those of some formats are transposed.
        transposed = found[scale].shape[1:] == (64,)
        found[scale][(slice(None), 0) if transposed else 0] = 0
    if library == 'gptqmodel':
      # AutoGPTQ wrote one for every matrix.
      found['bias'] = torch.zeros(64)
    return found

  metadata = config.pop('metadata', '')
  return Deployed(convert, config, _SQUARE, metadata=metadata)


def _fp8(weight: torch.Tensor) -> Parts:
  parts = quantised_models.fp8(weight, (32, 16))
  return {'weight': parts['weight'], 'weight_scale_inv': parts['scale']}


def _mxfp4(weight: torch.Tensor) -> Parts:
  """Random codes; none in the first output if it has no values."""
  experts, inputs, outputs = weight.shape
  shape = experts, outputs, inputs // 32
  random = torch.manual_seed(0)
  blocks = torch.randint(0, 256, (*shape, 16), generator=random).byte()
  if not weight[..., 0].any():
    blocks[:, 0] = 0
  scales = torch.randint(121, 125, shape, generator=random)
  return {'_blocks': blocks, '_scales': scales.byte()}


_INT4 = compressed_cases.CASES['w4a16-zeros']
CASES = {
  'compressed': Deployed(compressed_cases.convert(_INT4), _INT4.config),
  'fp8': Deployed(_fp8, BLOCKS),
  'experts': Deployed(_fp8, BLOCKS, _QWEN3_MOE),
  # As DeepSeek's: blocks do not divide the latent and the rotated key.
  'latent': Deployed(
    _fp8,
    BLOCKS,
    _DEEPSEEK_V3,
    ('_proj.weight', '_proj_with_mqa.weight'),
  ),
  'awq': _reference('autoawq', 'group-16', 'scales'),
  'gptq': _reference('gptqmodel', '4-16-sym-gptq-ordered', 'scales'),
  'nf4': _reference('bitsandbytes', 'nf4', 'weight.absmax'),
  'torchao': _reference('torchao', 'int8', '_weight_scale'),
  'torchao_int4': _reference(
    *('torchao', 'int4', '_weight_scale', '_weight_zero_point')
  ),
  'mxfp4': Deployed(*(_mxfp4, {'quant_method': 'mxfp4'}, _GPT_OSS, _EXPERTS)),
}


def save(directory: pathlib.Path, case: Deployed, **overrides: Any) -> None:
  """Saves a model.

  Args:
    directory: where to; made.
    case: how.
    overrides: of `tiny_models.save`.
  """
  directory.mkdir()
  packed = quantised_models.save(
    *(directory, case.convert, case.config, case.quantised),
    **{**case.overrides, **overrides},
  )
  if case.metadata:
    file = directory / 'model.safetensors'
    tensors = safetensors.torch.load_file(file)
    others = [name for name in tensors if name.endswith('.weight')]
    metadata = {
      **dict.fromkeys(others, json.dumps({'_type': 'Tensor'})),
      **dict.fromkeys(packed, case.metadata),
    }
    listed = {'format': 'pt', 'tensor_names': json.dumps(list(metadata))}
    safetensors.torch.save_file(tensors, file, {**metadata, **listed})
