"""Families of models: their Hugging Face configs and the names of weights.

To add one: a function that reads its config, its entry in `_FAMILIES`, and
what `to_hf` writes beyond the common fields.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vtokens.host import errors
from vtokens.models import rope as rope_lib
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families.hf_fields import Fields

# --- names of weights ---

# Parameter path -> tensor name, `{}` being the layer. Paths that share a name
# are rows of one tensor, in the order in which they stand here.
_COMMON_NAMES = {
  'embedding': 'model.embed_tokens.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'model.norm.weight',
  'layers.attention.q': 'model.layers.{}.self_attn.q_proj.weight',
  'layers.attention.k': 'model.layers.{}.self_attn.k_proj.weight',
  'layers.attention.v': 'model.layers.{}.self_attn.v_proj.weight',
  'layers.attention.o': 'model.layers.{}.self_attn.o_proj.weight',
  'layers.attention.q_bias': 'model.layers.{}.self_attn.q_proj.bias',
  'layers.attention.k_bias': 'model.layers.{}.self_attn.k_proj.bias',
  'layers.attention.v_bias': 'model.layers.{}.self_attn.v_proj.bias',
  'layers.attention.o_bias': 'model.layers.{}.self_attn.o_proj.bias',
  'layers.attention.q_norm.scale': 'model.layers.{}.self_attn.q_norm.weight',
  'layers.attention.k_norm.scale': 'model.layers.{}.self_attn.k_norm.weight',
  'layers.mlp.gate': 'model.layers.{}.mlp.gate_proj.weight',
  'layers.mlp.up': 'model.layers.{}.mlp.up_proj.weight',
  'layers.mlp.down': 'model.layers.{}.mlp.down_proj.weight',
}
_LAYER = 'model.layers.{}.'
_PRE_NORMS = {
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'post_attention_layernorm.weight',
}
_POST_NORMS = {
  'layers.attention_post_norm.scale': (
    _LAYER + 'post_attention_layernorm.weight'
  ),
  'layers.mlp_post_norm.scale': _LAYER + 'post_feedforward_layernorm.weight',
}
_FUSED = {
  'layers.attention.q': _LAYER + 'self_attn.qkv_proj.weight',
  'layers.attention.k': _LAYER + 'self_attn.qkv_proj.weight',
  'layers.attention.v': _LAYER + 'self_attn.qkv_proj.weight',
  'layers.mlp.gate': _LAYER + 'mlp.gate_up_proj.weight',
  'layers.mlp.up': _LAYER + 'mlp.gate_up_proj.weight',
}
_LLAMA_NAMES = {**_COMMON_NAMES, **_PRE_NORMS}
_OLMO_NAMES = {**_COMMON_NAMES, **_POST_NORMS}
_PHI_NAMES = {**_LLAMA_NAMES, **_FUSED}
_GEMMA2_NAMES = {
  **_COMMON_NAMES,
  **_POST_NORMS,
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'pre_feedforward_layernorm.weight',
}


# --- reading configs ---

# What transformers acts on in a config of any family, and this decoder has not.
_NEVER = (
  'quantization_config',
  'per_layer_config',  # Layers of other sizes, or without some parts.
  'fusion_config',  # Replaces modules.
  'transformers_weights',  # The file of the weights.
  'attribute_map',  # Other names of fields.
  'attention_chunk_size',
  'kv_sharing_modes',
  'text_config',
  'text_encoder',
  'decoder',
  'generator',
)

_OLMO3_THETA = 500_000.0
_FULL, _SLIDING = _LAYER_TYPES = ('full_attention', 'sliding_attention')


def _llama(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.no_window()
  f.only('mlp_bias', False)
  # Weights split by rank for inference on several hosts (LLaMA 1 exports);
  # the sum order would differ from ours.
  f.only('pretraining_tp', 1)
  bias = f.boolean('attention_bias', False)
  return {
    'qkv_bias': bias,
    'out_bias': bias,
    'layer_pattern': (LayerKind(f.rope()),),
  }


def _mistral(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.only('attention_bias', False)
  if f.per_layer('layer_types', _LAYER_TYPES):
    raise f.fail(
      'layer_types',
      "none (transformers' Mistral ignores it; for alternating "
      "layers model_type is 'ministral')",
    )
  window = f.optional('sliding_window', int, 4096)
  return {'layer_pattern': (LayerKind(f.rope(), window),)}


def _ministral(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.only('attention_bias', False)
  window = f.optional('sliding_window', int, 4096)
  default = [_SLIDING if window else _FULL] * f.number('num_hidden_layers')
  return {'layer_pattern': _by_type(f, default, window)}


def _qwen(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  window = None
  if f.boolean('use_sliding_window', False):
    window = f.optional('sliding_window', int, 4096)
  first = f.values.get('max_window_layers', 28)
  if type(first) is not int or first < 0:
    raise f.fail('max_window_layers', 'a number of layers')
  default = [
    _SLIDING if window and i >= first else _FULL
    for i in range(f.number('num_hidden_layers'))
  ]
  return {'layer_pattern': _by_type(f, default, window)}


def _qwen2(f: Fields) -> dict[str, Any]:
  # Written into no config: it is part of the code.
  f.only('attention_bias', True)
  return {**_qwen(f), 'qkv_bias': True}


def _qwen3(f: Fields) -> dict[str, Any]:
  bias = f.boolean('attention_bias', False)
  return {
    **_qwen(f),
    'head_dim': f.head_dim(128),
    'qk_norm': 'head',
    'qkv_bias': bias,
    'out_bias': bias,
  }


def _phi3(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.only('attention_bias', False)
  f.only('layer_types', None)
  values = {**f.values}
  values.setdefault('original_max_position_embeddings', 4096)
  for field in ('rope_scaling', 'rope_parameters'):
    found = values.get(field)
    if isinstance(found, Mapping):
      kind = found.get('rope_type', found.get('type'))
      if kind in ('su', 'yarn'):  # Its older names for the same.
        values[field] = {**found, 'rope_type': 'longrope'}
  f = Fields(values, f.where)
  return {
    'rotary_dim': f.rotary_dim(),
    'layer_pattern': (LayerKind(f.rope(), f.optional('sliding_window', int)),),
  }


def _gemma_common(f: Fields) -> dict[str, Any]:
  f.only('use_bidirectional_attention', False, None)
  bias = f.boolean('attention_bias', False)
  return {
    'head_dim': f.head_dim(256),
    'tie_embeddings': f.boolean('tie_word_embeddings', True),
    'activation': 'gelu_tanh',
    'qkv_bias': bias,
    'out_bias': bias,
    'norm_offset': 1.0,
    'scale_embeddings': True,
  }


def _gemma(f: Fields) -> dict[str, Any]:
  # The first files said gelu and meant the tanh form; see transformers#29402.
  f.only('hidden_act', 'gelu_pytorch_tanh', 'gelu')
  f.only('hidden_activation', None, 'gelu_pytorch_tanh')
  f.no_window()
  return {**_gemma_common(f), 'layer_pattern': (LayerKind(f.rope()),)}


def _gemma2(f: Fields) -> dict[str, Any]:
  f.only('hidden_activation', 'gelu_pytorch_tanh')
  default = [
    _FULL if i % 2 else _SLIDING for i in range(f.number('num_hidden_layers'))
  ]
  window = f.optional('sliding_window', int, 4096)
  return {
    **_gemma_common(f),
    'post_norm': True,
    'query_scalar': f.number('query_pre_attn_scalar', default=256),
    'attention_softcap': f.optional('attn_logit_softcapping', float, 50.0),
    'logit_softcap': f.optional('final_logit_softcapping', float, 30.0),
    'layer_pattern': _by_type(f, default, window),
  }


def _gemma3(f: Fields) -> dict[str, Any]:
  f.only('hidden_activation', 'gelu_pytorch_tanh')
  # transformers reads it and then does not use it.
  f.only('attn_logit_softcapping', None)
  every = f.number('sliding_window_pattern', default=6)
  default = [
    _SLIDING if (i + 1) % every else _FULL
    for i in range(f.number('num_hidden_layers'))
  ]
  window = f.optional('sliding_window', int, 4096)
  theta = f.number('rope_local_base_freq', float, 10_000.0)
  ropes = {
    _FULL: f.rope(_FULL, 1_000_000.0),
    _SLIDING: f.nested_rope(_SLIDING, theta) or Rope(theta=theta),
  }
  return {
    **_gemma_common(f),
    'post_norm': True,
    'qk_norm': 'head',
    'query_scalar': f.number('query_pre_attn_scalar', default=256),
    'logit_softcap': f.optional('final_logit_softcapping', float),
    'layer_pattern': _by_type(f, default, window, ropes),
  }


def _smollm3(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.only('mlp_bias', False)
  count = f.number('num_hidden_layers')
  interval = f.number('no_rope_layer_interval', default=4)
  turned = f.per_layer('no_rope_layers', (0, 1)) or [
    int((i + 1) % interval != 0) for i in range(count)
  ]
  window = None
  if f.boolean('use_sliding_window', False):
    window = f.optional('sliding_window', int)
  default = [_SLIDING if window and not t else _FULL for t in turned]
  types = f.per_layer('layer_types', _LAYER_TYPES) or default
  f.windowed_layers(types, window)
  rope = f.rope(default_theta=2_000_000.0)
  bias = f.boolean('attention_bias', False)
  return {
    'tie_embeddings': f.boolean('tie_word_embeddings', True),
    'qkv_bias': bias,
    'out_bias': bias,
    'layer_pattern': _pattern(
      [
        LayerKind(rope if t else None, window if kind == _SLIDING else None)
        for t, kind in zip(turned, types, strict=True)
      ]
    ),
  }


def _olmo(f: Fields) -> dict[str, Any]:
  f.only('hidden_act', 'silu')
  f.only('clip_qkv', None)
  bias = f.boolean('attention_bias', False)
  return {
    'qk_norm': 'projection',
    'pre_norm': False,
    'post_norm': True,
    'qkv_bias': bias,
    'out_bias': bias,
  }


def _olmo2(f: Fields) -> dict[str, Any]:
  f.no_window()
  return {**_olmo(f), 'layer_pattern': (LayerKind(f.rope()),)}


def _olmo3(f: Fields) -> dict[str, Any]:
  default = [
    _SLIDING if (i + 1) % 4 else _FULL
    for i in range(f.number('num_hidden_layers'))
  ]
  window = f.optional('sliding_window', int, 4096)
  full = f.rope(_FULL, _OLMO3_THETA)
  # Only layers that see everything are stretched.
  local = f.nested_rope(_SLIDING, _OLMO3_THETA)
  if local is None:
    local = Rope(theta=_OLMO3_THETA)
    if f.number('rope_theta', float, _OLMO3_THETA) != _OLMO3_THETA:
      raise f.fail(
        'rope_theta',
        f'{_OLMO3_THETA:.0f}, or rope_parameters with a rope_theta for each '
        'type of layer: transformers 4 and 5 read another one differently',
      )
  return {
    **_olmo(f),
    'layer_pattern': _by_type(
      f, default, window, {_FULL: full, _SLIDING: local}
    ),
  }


def _by_type(
  f: Fields,
  default: list[str],
  window: int | None,
  ropes: Mapping[str, Rope] | None = None,
) -> tuple[LayerKind, ...]:
  """Layers of two types, of which one sees only a window."""
  types = f.per_layer('layer_types', _LAYER_TYPES) or default
  f.windowed_layers(types, window)
  if ropes is None:
    ropes = dict.fromkeys(_LAYER_TYPES, f.rope())
  return _pattern(
    [LayerKind(ropes[t], window if t == _SLIDING else None) for t in types]
  )


def _pattern(kinds: list[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest pattern that repeats to this list."""
  for size in range(1, len(kinds)):
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds)):
      return tuple(kinds[:size])
  return tuple(kinds)


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type`.

  Attributes:
    architecture: its class in transformers.
    read: from the fields of its config to what it sets in `DecoderConfig`
      beyond the sizes.
    names: parameter path -> name of the tensor.
    num_kv_heads: where a config does not say; None for that of query heads.
  """

  architecture: str
  read: Callable[[Fields], dict[str, Any]]
  names: Mapping[str, str]
  num_kv_heads: int | None = None


FAMILIES = {
  'llama': Family('LlamaForCausalLM', _llama, _LLAMA_NAMES),
  'mistral': Family('MistralForCausalLM', _mistral, _LLAMA_NAMES, 8),
  'ministral': Family('MinistralForCausalLM', _ministral, _LLAMA_NAMES, 8),
  'qwen2': Family('Qwen2ForCausalLM', _qwen2, _LLAMA_NAMES, 32),
  'qwen3': Family('Qwen3ForCausalLM', _qwen3, _LLAMA_NAMES, 32),
  'phi3': Family('Phi3ForCausalLM', _phi3, _PHI_NAMES),
  'gemma': Family('GemmaForCausalLM', _gemma, _LLAMA_NAMES, 16),
  'gemma2': Family('Gemma2ForCausalLM', _gemma2, _GEMMA2_NAMES, 4),
  'gemma3_text': Family('Gemma3ForCausalLM', _gemma3, _GEMMA2_NAMES, 4),
  'smollm3': Family('SmolLM3ForCausalLM', _smollm3, _LLAMA_NAMES, 4),
  'olmo2': Family('Olmo2ForCausalLM', _olmo2, _OLMO_NAMES),
  'olmo3': Family('Olmo3ForCausalLM', _olmo3, _OLMO_NAMES),
}


def from_hf(
  config: Mapping[str, Any], where: str = 'config.json'
) -> DecoderConfig:
  """Reads a `DecoderConfig` out of a Hugging Face `config.json`.

  Args:
    config: the parsed JSON object, as transformers 4 or 5 writes it.
    where: what to call it in errors, e.g. its path.

  Returns:
    The `DecoderConfig`. A missing field has the value that transformers gives
    it.

  Raises:
    errors.UserError: a field is missing, or has a value that this decoder
      does not implement. Nothing that changes the numbers is ignored.
  """
  model_type = config.get('model_type')
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise errors.UserError(
      f'{where}: model_type is {model_type!r}, not supported; supported: '
      f'{", ".join(FAMILIES)}'
    )
  f = Fields(config, where)
  family = FAMILIES[model_type]
  # Some libraries make an encoder of a decoder so.
  f.only('is_causal', True)
  f.only('is_encoder_decoder', False, None)
  f.only('default_rope_type', 'default', None)
  for field in _NEVER:
    f.only(field, None, {})
  num_heads = f.number('num_attention_heads')
  values = {
    'model_type': model_type,
    'vocab_size': f.number('vocab_size'),
    'embed_dim': f.number('hidden_size'),
    'num_layers': f.number('num_hidden_layers'),
    'num_heads': num_heads,
    'num_kv_heads': f.number(
      'num_key_value_heads',
      # null means as many as query heads; a missing field need not.
      default=num_heads
      if 'num_key_value_heads' in config
      else family.num_kv_heads or num_heads,
    ),
    'mlp_dim': f.number('intermediate_size'),
    'norm_eps': f.number('rms_norm_eps', float),
    'max_positions': f.number('max_position_embeddings'),
    **family.read(f),
  }
  values.setdefault('head_dim', f.head_dim())
  values.setdefault('tie_embeddings', f.boolean('tie_word_embeddings', False))
  if model_type != 'phi3' and f.rotary_dim() is not None:
    raise f.fail('partial_rotary_factor', f'1 for {model_type}', f.rotary_dim())
  try:
    found = DecoderConfig(**values)
    for kind in found.layer_pattern:
      rope_lib.check(kind.rope, found.rotary_dim or found.head_dim)
  except ValueError as e:
    raise errors.UserError(f'{where}: {e}') from None
  return found


# --- writing configs ---


def to_hf(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` of a decoder, in transformers 4's form, which 5 reads.

  The inverse of `from_hf`, but for `context_length`, which is no property of
  the model.
  """
  kinds = config.layer_kinds
  windows = {kind.window for kind in kinds} - {None}
  types = [_SLIDING if kind.window else _FULL for kind in kinds]
  full = [k.rope for k in kinds if k.rope and not k.window]
  local = [k.rope for k in kinds if k.rope and k.window]
  rope = (full or local)[0]
  gelu = config.activation == 'gelu_tanh'
  values: dict[str, Any] = {
    'architectures': [FAMILIES[config.model_type].architecture],
    'model_type': config.model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'gelu_pytorch_tanh' if gelu else 'silu',
    'rms_norm_eps': config.norm_eps,
    'max_position_embeddings': config.max_positions,
    'tie_word_embeddings': config.tie_embeddings,
    'rope_theta': rope.theta,
    'rope_scaling': _rope_scaling(rope),
  }
  family = config.model_type
  if gelu:
    values['hidden_activation'] = 'gelu_pytorch_tanh'
  if family != 'qwen2':
    values['attention_bias'] = config.out_bias
  if family in ('mistral', 'phi3', *_ALTERNATING):
    values['sliding_window'] = next(iter(windows), None)
  if family in _ALTERNATING:
    values['layer_types'] = types
  if family in ('qwen2', 'qwen3', 'smollm3'):
    values['use_sliding_window'] = bool(windows)
  if family == 'phi3':
    if config.rotary_dim is not None:
      values['partial_rotary_factor'] = config.rotary_dim / config.head_dim
    if rope.type == 'longrope':
      values['original_max_position_embeddings'] = rope.original_max_positions
  if family in ('gemma2', 'gemma3_text'):
    values['query_pre_attn_scalar'] = config.query_scalar
    values['attn_logit_softcapping'] = config.attention_softcap
    values['final_logit_softcapping'] = config.logit_softcap
  if family == 'gemma3_text' and local:
    values['rope_local_base_freq'] = local[0].theta
  if family == 'olmo3' and local:
    # From rope_theta alone, transformers 5 gives local layers another one.
    values['rope_parameters'] = {
      _FULL: _rope_parameters(rope),
      _SLIDING: _rope_parameters(local[0]),
    }
    # transformers would add it to them.
    values.pop('rope_scaling', None)
  if family == 'smollm3':
    values['no_rope_layers'] = [int(kind.rope is not None) for kind in kinds]
  return values


_ALTERNATING = (
  'ministral',
  'qwen2',
  'qwen3',
  'gemma2',
  'gemma3_text',
  'smollm3',
  'olmo3',
)


def _rope_parameters(rope: Rope) -> dict[str, Any]:
  scaling = _rope_scaling(rope) or {'rope_type': 'default'}
  return {**scaling, 'rope_theta': rope.theta}


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
  if rope.type == 'default':
    return None
  values: dict[str, Any] = {'rope_type': rope.type}
  if rope.type != 'longrope':
    values['factor'] = rope.factor
  if rope.type in ('yarn', 'llama3', 'longrope'):
    values['original_max_position_embeddings'] = rope.original_max_positions
  if rope.type == 'llama3':
    values['low_freq_factor'] = rope.low_freq_factor
    values['high_freq_factor'] = rope.high_freq_factor
  if rope.type == 'yarn':
    values['beta_fast'] = rope.beta_fast
    values['beta_slow'] = rope.beta_slow
    values['truncate'] = rope.truncate
  if rope.type == 'longrope':
    values['short_factor'] = list(rope.short_factor)
    values['long_factor'] = list(rope.long_factor)
  if rope.type in ('yarn', 'longrope'):
    values['attention_factor'] = rope.attention_factor
  return values
