"""Fields of config.json of families with gated delta nets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import gguf_stored, rope_json
from vtokens.models.families.config_json import (
  FULL,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.mixers.delta_net import DeltaNet

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

LINEAR = 'linear_attention'
_FIELDS = {
  'key_heads': 'linear_num_key_heads',
  'value_heads': 'linear_num_value_heads',
  'key_dim': 'linear_key_head_dim',
  'value_dim': 'linear_value_head_dim',
  'taps': 'linear_conv_kernel_dim',
}
# Sections of the rotary embedding of images; they change nothing for a text.
_SECTIONS = ('mrope_section', 'mrope_interleaved')
_LAYER = 'model.layers.{}.'
_ATTENTION = _LAYER + 'self_attn.'
_LINEAR = _LAYER + 'linear_attn.'
# Parameters whose rows alternate in one tensor, head by head: path -> name of
# the tensor.
_BY_HEAD = {
  'layers.attention.q': _ATTENTION + 'q_proj.weight',
  'layers.attention.gate': _ATTENTION + 'q_proj.weight',
  'layers.attention.q_bias': _ATTENTION + 'q_proj.bias',
  'layers.attention.gate_bias': _ATTENTION + 'q_proj.bias',
}


def read(f: Fields) -> dict[str, Any]:
  """What families with gated delta nets have in common.

  Raises:
    errors.UserError: a field is wrong or not supported.
  """
  f.only('hidden_act', 'silu')
  # Released files have fields that transformers does not look at.
  f.only('attn_output_gate', True, None)
  f.only('output_gate_type', 'swish', None)
  f.normalised('full_attention_interval')
  types = f.per_layer('layer_types', (FULL, LINEAR))
  if types is None or FULL not in types:
    # transformers counts the tokens of its cache in such a layer.
    raise f.fail('layer_types', f'a list with {FULL!r}')
  sizes = {name: f.number(field) for name, field in _FIELDS.items()}
  kinds = {
    FULL: LayerKind(rope_json.read(f, _SECTIONS)),
    LINEAR: LayerKind(None, mixer=DeltaNet(**sizes)),
  }
  return {
    **f.biases(),
    'qk_norm': 'head',
    'norm_offset': 1.0,
    'output_gate': True,
    'rotary_dim': f.rotary_dim(),
    'layer_pattern': shortest_pattern([kinds[t] for t in types]),
  }


def write(config: DecoderConfig, values: dict[str, Any]) -> None:
  """The inverse of `read`."""
  kinds = config.layer_kinds
  net = next(k.mixer for k in kinds if isinstance(k.mixer, DeltaNet))
  for name, field in _FIELDS.items():
    values[field] = getattr(net, name)
  values['layer_types'] = [LINEAR if k.mixer else FULL for k in kinds]
  rotated = config.rotary_dim or config.head_dim
  values['partial_rotary_factor'] = rotated / config.head_dim


def names(common: Mapping[str, str], *, joined: bool) -> Mapping[str, str]:
  """Names of tensors.

  Args:
    common: names of the other parameters.
    joined: whether queries, keys, values and gates are rows of one tensor, by
      head of keys; else gates are a tensor of their own.
  """
  qkvz = _LINEAR + ('in_proj_qkvz' if joined else 'in_proj_qkv') + '.weight'
  ba = _LINEAR + 'in_proj_ba.weight'
  return {
    **common,
    **_BY_HEAD,
    'layers.attention.in_q': qkvz,
    'layers.attention.in_k': qkvz,
    'layers.attention.in_v': qkvz,
    'layers.attention.in_z': qkvz if joined else _LINEAR + 'in_proj_z.weight',
    'layers.attention.in_b': ba if joined else _LINEAR + 'in_proj_b.weight',
    'layers.attention.in_a': ba if joined else _LINEAR + 'in_proj_a.weight',
    'layers.attention.kernel': _LINEAR + 'conv1d.weight',
    'layers.attention.rates': _LINEAR + 'A_log',
    'layers.attention.step_bias': _LINEAR + 'dt_bias',
    'layers.attention.out_scale': _LINEAR + 'norm.weight',
    'layers.attention.out': _LINEAR + 'out_proj.weight',
  }


def row_groups(config: DecoderConfig, path: str, *, joined: bool) -> int:
  """See `Family.row_groups`."""
  if path in _BY_HEAD:
    return config.num_heads
  name = path.removeprefix('layers.attention.')
  if joined and name in ('in_q', 'in_k', 'in_v', 'in_z', 'in_b', 'in_a'):
    nets = (kind.mixer for kind in config.layer_kinds)
    return next(net.key_heads for net in nets if isinstance(net, DeltaNet))
  return 1


def read_gguf(metadata: 'Metadata', values: dict[str, Any]) -> None:
  """Sets the fields of delta nets from the metadata of a GGUF file.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.

  Raises:
    errors.UserError: a value is missing or wrong.
  """
  heads, width = metadata.state_heads()
  layers = values['num_hidden_layers']
  linear = metadata.flags('{arch}.attention.recurrent_layers', layers)
  interval = metadata.number('{arch}.full_attention_interval', default=4)
  if linear is None:
    linear = [(i + 1) % interval != 0 for i in range(layers)]
  values |= {
    'linear_num_key_heads': metadata.number('{arch}.ssm.group_count'),
    'linear_num_value_heads': heads,
    'linear_key_head_dim': metadata.number('{arch}.ssm.state_size'),
    'linear_value_head_dim': width,
    'linear_conv_kernel_dim': metadata.number('{arch}.ssm.conv_kernel'),
    'layer_types': [LINEAR if one else FULL for one in linear],
  }
  metadata.partial_rotation(values)


def stored(
  config: DecoderConfig, name: str, shape: Sequence[int], *, tiled: bool
) -> Stored:
  """See `Family.gguf_stored`.

  Args:
    config: the architecture.
    name: Hugging Face's name of the tensor.
    shape: its shape in the file.
    tiled: whether heads of values that share a head of keys are apart.
  """
  if '.linear_attn.' not in name:
    # The converter adds the model's offset of 1 to the weights.
    return Stored(offset=1.0 if name.endswith('norm.weight') else 0.0)
  found = gguf_stored.recurrent(name, shape) or Stored()
  net = next(
    kind.mixer
    for kind in config.layer_kinds
    if isinstance(kind.mixer, DeltaNet)
  )
  if not tiled:
    return found
  keys = 2 * net.key_heads * net.key_dim

  def order(width: int, before: int = 0) -> np.ndarray:
    heads = net.key_heads, net.value_heads
    return gguf_stored.tiled_rows(*heads, width, before)

  part = name.split('.linear_attn.')[1]
  if part == 'out_proj.weight':
    return Stored(columns=order(net.value_dim))
  if part in ('in_proj_qkv.weight', 'conv1d.weight'):
    rows = order(net.value_dim, keys)
  elif part == 'in_proj_z.weight':
    rows = order(net.value_dim)
  elif part == 'norm.weight':
    return found
  else:
    rows = order(1)
  return dataclasses.replace(found, rows=rows)
