"""Gemma 4 for text."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import (
  expert_fields,
  gemma_gguf,
  later_gemma,
  rope_json,
)
from vtokens.models.families.config_json import (
  FULL,
  SLIDING,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About
from vtokens.models.families.later_gemma import LaterGemma
from vtokens.models.layers import Gated
from vtokens.models.mixers.shared_heads import Heads
from vtokens.models.mlps.dense_and_experts import DenseAndExperts
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_LAYER = 'model.layers.{}.'


def _norm(place: str, number: str = '') -> str:
  return f'{_LAYER}{place}_feedforward_layernorm{number}.weight'


_GATE_UP = _LAYER + 'experts.gate_up_proj'
_NAMES: Mapping[str, str] = {
  **later_gemma.NAMES,
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


class Gemma4(LaterGemma):
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
  names = _NAMES

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

  def read(self, f: Fields) -> dict[str, Any]:
    # Images see one another; a text does not.
    f.only('use_bidirectional_attention', None, 'vision')
    # transformers ignores them.
    f.only('rope_scaling', None)
    f.only('rope_theta', None)
    per_layer = later_gemma.count(f, 'hidden_size_per_layer_input')
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
      later_gemma.check_padding(f)
    return {
      **super().read(f),
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
    for name, source in zip(types, later_gemma.sources(f, types), strict=True):
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
    super().write(config, values)
    kinds = config.layer_kinds
    full = next(kind for kind in kinds if not kind.window)
    heads: Any = full.mixer
    mlps = {kind.mlp for kind in kinds}
    values.update(
      global_head_dim=heads.head_dim,
      attention_k_eq_v=heads.values_are_keys,
      use_double_wide_mlp=any(
        getattr(mlp, 'width', None) is not None for mlp in mlps
      ),
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
