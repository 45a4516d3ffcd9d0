"""Metadata of GGUF files of Gemma 3n and Gemma 4."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.host import errors
from vtokens.models.families import expert_fields
from vtokens.models.families.config_json import FULL, SLIDING

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


def read_gemma4(metadata: 'Metadata', values: dict[str, Any]) -> None:
  """Completes the fields of Gemma 4; see `Family.read_gguf`."""
  layers, vocab = values['num_hidden_layers'], values['vocab_size']
  full_width = values['head_dim']
  own = read_layers(metadata, values)
  values |= {
    'head_dim': _same_width(metadata, 'length_swa'),
    'global_head_dim': full_width,
    'vocab_size_per_layer_input': vocab,
    # llama.cpp takes 30 for missing.
    'final_logit_softcapping': metadata.number(
      '{arch}.final_logit_softcapping', float, 30.0
    ),
  }
  for end, width in (('', full_width), ('_swa', values['head_dim'])):
    key = '{arch}.rope.dimension_count' + end
    rotated = metadata.number(key, default=width)
    if rotated != width:
      raise metadata.unexpected(key, rotated, str(width))
  full = [i for i, name in enumerate(values['layer_types']) if name == FULL]
  _read_heads(metadata, values, full, own)
  key = '{arch}.feed_forward_length'
  widths = metadata.per_layer(key, layers)
  wide = own < layers and widths[-1] == 2 * widths[0]
  if widths != [
    widths[0] * (2 if wide and i >= own else 1) for i in range(layers)
  ]:
    raise metadata.unexpected(
      key, widths, 'one width, doubled in layers that share keys or nowhere'
    )
  values |= {'intermediate_size': widths[0], 'use_double_wide_mlp': wide}
  values['rope_parameters'] = {
    SLIDING: {
      'rope_type': 'default',
      'rope_theta': metadata.number('{arch}.rope.freq_base_swa', float, 1e4),
    },
    FULL: {
      'rope_type': 'proportional',
      'partial_rotary_factor': _rotated_share(metadata, values),
      'rope_theta': values.pop('rope_theta'),
    },
  }
  number = metadata.optional('{arch}.expert_count', int)
  values['enable_moe_block'] = number is not None
  if number:
    expert_fields.read_gguf(
      metadata, values, 'num_experts', 'moe_intermediate_size'
    )
    values['top_k_experts'] = values.pop('num_experts_per_tok')


def read_layers(
  metadata: 'Metadata', values: dict[str, Any], own: int | None = None
) -> int:
  """Sets types of layers, inputs of each layer and shared keys.

  Args:
    metadata: metadata of a GGUF file.
    values: fields of config.json, to be changed in place.
    own: number of layers with keys and values of their own, which llama.cpp
      takes for given; None if the file says it.

  Returns:
    The number of layers with keys and values of their own.

  Raises:
    errors.UserError: a value is wrong, or layers would read the keys of others
      than llama.cpp has them read.
  """
  layers = values['num_hidden_layers']
  key = '{arch}.attention.shared_kv_layers'
  shared = metadata.optional(key, int) or 0
  if own is not None and shared != layers - own:
    raise metadata.unexpected(key, shared, f'{layers - own}, as llama.cpp has')
  own = layers - shared
  metadata.layer_types(values, 5)
  # llama.cpp takes the keys of the last two layers that have them.
  if shared and values['layer_types'][max(own - 2, 0) : own] != [SLIDING, FULL]:
    raise metadata.unexpected(
      key, shared, 'a layer with a window and one without before these'
    )
  values |= {
    'num_kv_shared_layers': shared,
    'hidden_size_per_layer_input': (
      metadata.optional('{arch}.embedding_length_per_layer_input', int) or 0
    ),
  }
  return own


def _read_heads(
  metadata: 'Metadata',
  values: dict[str, Any],
  full: Sequence[int],
  own: int,
) -> None:
  """Sets the numbers of heads of keys.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.
    full: layers without a window.
    own: number of layers with keys of their own.

  Raises:
    errors.UserError: layers of one type have different numbers.
  """
  key = '{arch}.attention.head_count_kv'
  heads = metadata.per_layer(key, values['num_hidden_layers'])
  of_full = {heads[i] for i in full}
  of_others = {n for i, n in enumerate(heads) if i not in full} or of_full
  equal = any(
    not metadata.has_tensor(f'blk.{i}.attn_v.weight') for i in full if i < own
  )
  if len(of_full) != 1 or len(of_others) != 1 or not min(heads):
    raise metadata.unexpected(key, heads, 'one number for each type of layer')
  (whole,), (windowed,) = of_full, of_others
  if not equal and whole != windowed:
    raise metadata.unexpected(
      key, heads, 'one number, where layers have attn_v.weight'
    )
  values |= {
    'num_key_value_heads': windowed,
    'num_global_key_value_heads': whole,
    'attention_k_eq_v': equal,
  }


def _same_width(metadata: 'Metadata', end: str) -> int:
  """Width of keys and values.

  Args:
    metadata: metadata of the file.
    end: end of its keys after `attention.key_` and `attention.value_`.

  Raises:
    errors.UserError: keys and values have different widths.
  """
  width: int = metadata.number('{arch}.attention.key_' + end)
  key = '{arch}.attention.value_' + end
  found = metadata.number(key, default=width)
  if found != width:
    raise metadata.unexpected(key, found, f'{width}, as of keys')
  return width


def _rotated_share(metadata: 'Metadata', values: dict[str, Any]) -> float:
  """Which part of a head of layers without a window is rotated.

  Args:
    metadata: metadata of the file.
    values: fields of config.json. The factors of frequencies are removed.

  Raises:
    errors.UserError: the factors of frequencies are others.
  """
  factors = (values.pop('rope_scaling') or {}).get('short_factor') or []
  count = sum(factor == 1 for factor in factors)
  half = values['global_head_dim'] // 2
  # The converter stops the others.
  if factors != [1.0] * count + factors[count:] or not (
    len(factors) == half and all(x > 1e29 for x in factors[count:])
  ):
    raise errors.UserError(
      f'{metadata.where}: tensor rope_freqs.weight has other values than '
      f'ones and then 1e30, {half} in all'
    )
  share: float = count / half
  return share
