"""Qwen 1.5 and 2 with experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import (
  expert_fields,
  family,
  qwen3_moe,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_MLP = 'model.layers.{}.mlp.shared_expert'
SHARED = {
  **tensor_names.PRE_NORM,
  'layers.mlp.shared.gate': _MLP + '.gate_proj.weight',
  'layers.mlp.shared.up': _MLP + '.up_proj.weight',
  'layers.mlp.shared.down': _MLP + '.down_proj.weight',
  'layers.mlp.shared_gate': _MLP + '_gate.weight',
}


class Qwen2Moe(Family):
  """An MLP with a gate, which all tokens use, beside the experts."""

  model_type = 'qwen2_moe'
  about = About(
    'Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B',
    'experts, in some layers or all, and a gated MLP for all tokens; biases of '
    'q, k and v; windows',
    4.0e-06,
  )
  architecture = 'Qwen2MoeForCausalLM'
  gguf = 'qwen2moe'
  names = tensor_names.with_experts(SHARED, 'mlp.')

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    joined = tensor_names.with_joined_experts(SHARED, 'mlp.')
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    expert_fields.skip_training(f)
    f.normalised('use_sliding_window', 'max_window_layers')
    experts = qwen3_moe.read_experts(
      f, shared=f.number('shared_expert_intermediate_size'), shared_gate=True
    )
    # transformers writes 0 for a window that is not in use.
    used = f.get('sliding_window') != 0
    rope = rope_json.read(f)
    return {
      'qkv_bias': f.boolean('qkv_bias', True),
      'layer_pattern': expert_fields.with_experts(
        f,
        f.pattern(rope) if used else f.full_pattern(rope),
        experts,
        expert_fields.sparse_layers(f),
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    qwen3_moe.write_experts(config, values)
    family.write_layer_types(config, values)
    values['use_sliding_window'] = values['sliding_window'] is not None
    shared = expert_fields.of(config).shared
    values['shared_expert_intermediate_size'] = shared
    values['qkv_bias'] = config.qkv_bias
    del values['attention_bias']

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    if name.endswith('.shared_expert_gate.weight'):
      # Older files have it without its axis of length 1.
      return Stored(shape=(1, shape[-1]))
    return super().gguf_stored(config, name, shape)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    dense = values['intermediate_size']
    expert_fields.read_gguf(
      metadata, values, 'num_experts', 'moe_intermediate_size'
    )
    values |= {
      'shared_expert_intermediate_size': metadata.number(
        '{arch}.expert_shared_feed_forward_length', default=dense
      ),
      'qkv_bias': values.pop('attention_bias', False),
      # llama.cpp has experts in every layer, and such weights.
      'norm_topk_prob': False,
      'mlp_only_layers': [],
      'decoder_sparse_step': 1,
    }
