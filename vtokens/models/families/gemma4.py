"""Gemma 4 for text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import (
  expert_fields,
  family,
  gemma_gguf,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import (
  FULL,
  SLIDING,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About, Family
from vtokens.models.layers import Gated
from vtokens.models.mixers.shared_heads import Heads
from vtokens.models.mlps.dense_and_experts import DenseAndExperts
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_GELU = 'gelu_pytorch_tanh'
_LAYER = 'model.layers.{}.'


def _norm(place: str, number: str = '') -> str:
  return f'{_LAYER}{place}_feedforward_layernorm{number}.weight'


_GATE_UP = _LAYER + 'experts.gate_up_proj'
NAMES: Mapping[str, str] = {
  **tensor_names.BOTH_NORMS,
  'per_layer.embedding': 'model.embed_tokens_per_layer.weight',
  'per_layer.projection': 'model.per_layer_model_projection.weight',
  'per_layer.norm.scale': 'model.per_layer_projection_norm.weight',
  'layers.per_layer.gate': _LAYER + 'per_layer_input_gate.weight',
  'layers.per_layer.projection': _LAYER + 'per_layer_projection.weight',
  'layers.per_layer.norm.scale': _LAYER + 'post_per_layer_input_norm.weight',
  'layers.scale': _LAYER + 'layer_scalar',
  # Of layers with experts.
  'layers.mlp.norm.scale': _norm('pre'),
  'layers.mlp.dense.gate': _LAYER + 'mlp.gate_proj.weight',
  'layers.mlp.dense.up': _LAYER + 'mlp.up_proj.weight',
  'layers.mlp.dense.down': _LAYER + 'mlp.down_proj.weight',
  'layers.mlp.dense_post_norm.scale': _norm('post', '_1'),
  'layers.mlp.router': _LAYER + 'router.proj.weight',
  'layers.mlp.router_scale': _LAYER + 'router.scale',
  'layers.mlp.router_factors': _LAYER + 'router.per_expert_scale',
  'layers.mlp.experts_norm.scale': _norm('pre', '_2'),
  'layers.mlp.experts_post_norm.scale': _norm('post', '_2'),
  'layers.mlp.experts.gate': _GATE_UP,
  'layers.mlp.experts.up': _GATE_UP,
  'layers.mlp.experts.down': _LAYER + 'experts.down_proj',
}
# Place in transformers' `per_layer_config` -> field of published files.
_OF_FULL_LAYERS = {
  'head_dim': 'global_head_dim',
  'num_key_value_heads': 'num_global_key_value_heads',
}
_ROPES = {
  SLIDING: {'rope_type': 'default', 'rope_theta': 1e4},
  FULL: {
    'rope_type': 'proportional',
    'partial_rotary_factor': 0.25,
    'rope_theta': 1e6,
  },
}
# Tensors of a layer that it does not use if it reads another layer's keys.
_SHARED = ('k_proj', 'v_proj', 'k_norm', 'v_norm')


class Gemma4(Family):
  """Wide heads in layers without a window; experts or inputs of each layer."""

  model_type = 'gemma4_text'
  about = About(
    'Gemma 4 31B, 26B-A4B, 12B, E4B, E2B',
    'two widths of heads, layers whose values are their keys, values normed, '
    'proportional RoPE, a scale of each layer; experts beside the MLP; inputs '
    'of each layer, keys and values that layers share',
    6.8e-05,
  )
  architecture = 'Gemma4ForCausalLM'
  gguf = 'gemma4'
  gguf_by_layer = ('attention.head_count_kv', 'feed_forward_length')
  names = NAMES

  def complete(self, values: dict[str, Any]) -> None:
    """Gives sizes of layers without a window the names of published files."""
    if values.get('rope_parameters') is None:
      values['rope_parameters'] = _ROPES
    given = values.get('per_layer_config')
    types = values.get('layer_types')
    if not isinstance(given, Mapping) or not isinstance(types, list):
      return
    full = {str(i) for i, kind in enumerate(types) if kind == FULL}
    own = next(iter(given.values()), None)
    if (
      {str(layer) for layer in given} == full
      and isinstance(own, Mapping)
      and all(other == own for other in given.values())
      and set(own) <= set(_OF_FULL_LAYERS)
      # Without it transformers would not look at the published field.
      and ('num_key_value_heads' not in own or values.get('attention_k_eq_v'))
    ):
      del values['per_layer_config']
      values['global_head_dim'] = own.get('head_dim', values.get('head_dim'))
      values['num_global_key_value_heads'] = own.get('num_key_value_heads')

  def unused_tensors(self, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys and values of layers that read an earlier layer's."""
    return unused_tensors(values, default=0)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_activation', _GELU)
    # Images see one another; a text does not.
    f.only('use_bidirectional_attention', None, 'vision')
    # transformers ignores them.
    f.only('rope_scaling', None)
    f.only('rope_theta', None)
    per_layer = count(f, 'hidden_size_per_layer_input')
    f.normalised('vocab_size_per_layer_input')
    if per_layer:
      rows, size = (
        f.number('vocab_size_per_layer_input'),
        f.number('vocab_size'),
      )
      if rows != size:
        raise f.fail(
          'vocab_size_per_layer_input', f'{size}, as vocab_size', rows
        )
      check_padding(f)
    return {
      **f.biases(),
      'activation': 'gelu_tanh',
      'post_norm': True,
      'qk_norm': 'head',
      'scale_embeddings': True,
      'attention_scale': 1.0,
      'logit_softcap': f.optional('final_logit_softcapping', float),
      'layer_scale': True,
      'per_layer_dim': per_layer,
      'layer_pattern': self._pattern(f),
    }

  def _pattern(self, f: Fields) -> tuple[LayerKind, ...]:
    window = f.optional('sliding_window', int)
    types = f.layer_types(window)
    equal = f.boolean('attention_k_eq_v')
    heads = f.number('num_attention_heads')
    kv_heads = f.number('num_key_value_heads')
    of_full = kv_heads
    if equal:
      of_full = f.number(
        'num_global_key_value_heads', default=kv_heads, inside=f.values
      )
    if heads % of_full:
      raise f.fail(
        'num_global_key_value_heads', f'a divisor of {heads}', of_full
      )
    width = f.number('global_head_dim', default=512, inside=f.values)
    if width % 2:
      raise f.fail('global_head_dim', 'an even number', width)
    missing = set(types) - set(f.values['rope_parameters'])
    if missing:
      raise f.fail('rope_parameters', f'to have {min(missing)}')
    kinds = {
      FULL: LayerKind(
        rope_json.read_of_type(f, FULL, 1e6, proportional=True),
        mixer=Heads(width, of_full, values_are_keys=equal),
      ),
      SLIDING: LayerKind(
        rope_json.read_of_type(f, SLIDING, 1e4, proportional=True),
        window,
        mixer=Heads(f.head_dim(), kv_heads),
      ),
    }
    experts = self._experts(f)
    wide = f.boolean('use_double_wide_mlp')
    pattern = []
    for name, source in zip(types, sources(f, types), strict=True):
      kind, mlp_width = kinds[name], None
      if source is not None:
        mixer: Any = kind.mixer
        kind = dataclasses.replace(
          kind, mixer=dataclasses.replace(mixer, source=source)
        )
        mlp_width = 2 * f.number('intermediate_size') if wide else None
      mlp: Any = Gated(mlp_width) if mlp_width else None
      if experts:
        mlp = DenseAndExperts(experts, mlp_width)
      pattern.append(dataclasses.replace(kind, mlp=mlp))
    return shortest_pattern(pattern)

  def _experts(self, f: Fields) -> Experts | None:
    sizes = ('num_experts', 'top_k_experts', 'moe_intermediate_size')
    if not f.boolean('enable_moe_block'):
      f.normalised(*sizes)
      return None
    number, active = (expert_fields.count(f, field) for field in sizes[:2])
    routing = expert_fields.routing(
      f, number, active, normalised=True, factors=True
    )
    return Experts(routing, f.number('moe_intermediate_size'))

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    for field in ('hidden_act', 'rope_theta', 'rope_scaling'):
      del values[field]
    family.write_layer_types(config, values)
    if values['sliding_window'] is None:
      del values['sliding_window']
    kinds = config.layer_kinds
    full = next(kind for kind in kinds if not kind.window)
    heads: Any = full.mixer
    mlps = {kind.mlp for kind in kinds}
    mixers: list[Any] = [kind.mixer for kind in kinds]
    values.update(
      hidden_activation=_GELU,
      final_logit_softcapping=config.logit_softcap,
      hidden_size_per_layer_input=config.per_layer_dim,
      vocab_size_per_layer_input=config.vocab_size,
      global_head_dim=heads.head_dim,
      attention_k_eq_v=heads.values_are_keys,
      num_kv_shared_layers=sum(one.source is not None for one in mixers),
      use_double_wide_mlp=any(
        getattr(mlp, 'width', None) is not None for mlp in mlps
      ),
      rope_parameters={
        SLIDING if kind.window else FULL: rope_json.write_parameters(kind.rope)
        for kind in kinds
        if kind.rope is not None
      },
    )
    if heads.values_are_keys:
      values['num_global_key_value_heads'] = heads.num_kv_heads
    moe = next((mlp for mlp in mlps if isinstance(mlp, DenseAndExperts)), None)
    values['enable_moe_block'] = moe is not None
    if moe is not None:
      values['num_experts'] = moe.experts.routing.experts
      values['top_k_experts'] = moe.experts.routing.active
      values['moe_intermediate_size'] = moe.experts.width

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    gemma_gguf.read_gemma4(metadata, values)


def unused_tensors(values: Mapping[str, Any], default: int) -> tuple[str, ...]:
  """Beginnings of names of keys and values that layers do not read.

  Args:
    values: fields of config.json, not checked.
    default: `num_kv_shared_layers` if it is missing.
  """
  layers = values.get('num_hidden_layers') or 0
  shared = values.get('num_kv_shared_layers', default) or 0
  if not isinstance(layers, int) or not isinstance(shared, int):
    return ()
  return tuple(
    f'model.layers.{i}.self_attn.{name}.'
    for i in range(max(layers - shared, 0), layers)
    for name in _SHARED
  )


def check_padding(f: Fields) -> None:
  """Raises unless the padding is token 0, whose row virtual tokens get."""
  padding = f.values.get('pad_token_id')
  if padding not in (None, 0):
    raise f.fail(
      'pad_token_id',
      '0: virtual tokens get the row of the padding in embed_tokens_per_layer, '
      'for which servers take row 0',
    )


def sources(f: Fields, types: Sequence[str]) -> list[int | None]:
  """For each layer the earlier layer whose keys and values it reads, if any.

  Args:
    f: the fields.
    types: `layer_types`.

  Raises:
    errors.UserError: no earlier layer of a type has keys and values.
  """
  own = len(types) - count(f, 'num_kv_shared_layers')
  if own < 1 or set(types[:own]) != set(types):
    raise f.fail(
      'num_kv_shared_layers',
      'fewer, so that each of layer_types has an earlier layer with keys and '
      'values',
    )
  last = {name: i for i, name in enumerate(types[:own])}
  return [None if i < own else last[name] for i, name in enumerate(types)]


def count(f: Fields, field: str) -> int:
  """A number that may be 0; null is 0."""
  found = f.get(field)
  return 0 if found is None or found == 0 else f.number(field)
