"""gpt-oss."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import (
  expert_fields,
  family,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.experts import Experts

_MLP = 'model.layers.{}.mlp.'
_GATE_UP = _MLP + 'experts.gate_up_proj'
_DOWN = _MLP + 'experts.down_proj'
_NAMES = {
  **tensor_names.PRE_NORM,
  'layers.attention.sinks': 'model.layers.{}.self_attn.sinks',
  'layers.mlp.router': _MLP + 'router.weight',
  'layers.mlp.router_bias': _MLP + 'router.bias',
  'layers.mlp.experts.gate': _GATE_UP,
  'layers.mlp.experts.up': _GATE_UP,
  'layers.mlp.experts.down': _DOWN,
  'layers.mlp.experts.gate_bias': _GATE_UP + '_bias',
  'layers.mlp.experts.up_bias': _GATE_UP + '_bias',
  'layers.mlp.experts.down_bias': _DOWN + '_bias',
}
_GGUF_NAMES = {
  **tensor_names.with_gguf_experts(_NAMES),
  'layers.attention.sinks': 'model.layers.{}.self_attn.sinks.weight',
  'layers.mlp.experts.gate_bias': _MLP + 'experts.gate_proj.bias',
  'layers.mlp.experts.up_bias': _MLP + 'experts.up_proj.bias',
  'layers.mlp.experts.down_bias': _MLP + 'experts.down_proj.bias',
}

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class GptOss(Family):
  """Attention sinks, windows in every second layer, experts with biases."""

  model_type = 'gpt_oss'
  about = About(
    'gpt-oss 20B, 120B',
    'experts with biases and a bounded unit, a bias of the router; attention '
    'sinks, windows in some layers, biases, YaRN without rounded bounds',
    5.3e-06,
  )
  architecture = 'GptOssForCausalLM'
  gguf = 'gpt-oss'
  names = _NAMES

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    names = self.names_of(config)
    return (tensor_names.Form(names, input_rows=True, interleaved=True),)

  def read(self, f: Fields) -> dict[str, Any]:
    # transformers' model does not look at it.
    f.only('hidden_act', 'silu')
    expert_fields.skip_training(f)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_local_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      scores='chosen',
      bias=True,
    )
    experts = Experts(
      routing,
      f.size('intermediate_size'),
      biases=True,
      # Older versions of transformers have constants instead of these fields.
      clamp=f.number('swiglu_limit', float, 7.0),
      gain=f.number('swiglu_alpha', float, 1.702),
    )
    pattern = f.pattern(rope_json.read(f))
    bias = f.boolean('attention_bias', True)
    return {
      'qkv_bias': bias,
      'out_bias': bias,
      'sinks': True,
      'layer_pattern': expert_fields.with_experts(f, pattern, experts),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    experts = expert_fields.of(config)
    values['num_local_experts'] = experts.routing.experts
    values['num_experts_per_tok'] = experts.routing.active
    values['swiglu_limit'] = experts.clamp
    values['swiglu_alpha'] = experts.gain

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(_GGUF_NAMES)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    expert_fields.read_gguf(metadata, values, 'num_local_experts')
    # llama.cpp rounds the bounds of YaRN, as `truncate` does by default.
    metadata.layer_types(values, 2)
    metadata.same_theta(values)
