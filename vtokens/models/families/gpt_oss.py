"""gpt-oss."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.experts import Experts
from vtokens.models.families import (
  expert_fields,
  family,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

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
