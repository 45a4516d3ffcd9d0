"""OLMoE."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import expert_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.qwen3_moe import JOINED
from vtokens.models.mlps.experts import Experts

_NAMES = tensor_names.with_experts(tensor_names.PRE_NORM, 'mlp.')

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Olmoe(Family):
  """Experts in every layer; norms over all heads of queries and keys."""

  model_type = 'olmoe'
  about = About('OLMoE 1B-7B', 'experts; norms of whole q and k', 3.8e-06)
  architecture = 'OlmoeForCausalLM'
  gguf = 'olmoe'
  names = _NAMES

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    return (*super().forms(config), JOINED)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('clip_qkv', None)
    f.no_window()
    expert_fields.skip_training(f)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      normalised=f.boolean('norm_topk_prob'),
    )
    experts = Experts(routing, f.size('intermediate_size'))
    pattern = (LayerKind(rope_json.read(f)),)
    return {
      **f.biases(),
      'qk_norm': 'projection',
      'layer_pattern': expert_fields.with_experts(f, pattern, experts),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    rule = expert_fields.of(config).routing
    values['num_experts'] = rule.experts
    values['num_experts_per_tok'] = rule.active
    values['norm_topk_prob'] = rule.normalised

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    expert_fields.read_gguf(metadata, values, 'num_experts')
    values['norm_topk_prob'] = False  # llama.cpp's.
