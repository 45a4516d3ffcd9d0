"""Mixtral."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import (
  expert_fields,
  family,
  mistral,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Mixtral(Family):
  """Mistral with experts in every layer."""

  model_type = 'mixtral'
  about = About(
    'Mixtral 8x7B, 8x22B', 'experts; sliding window', 7.2e-06, 'yes, as `llama`'
  )
  architecture = 'MixtralForCausalLM'
  # In GGUF files it is `llama` with experts.
  gguf_interleaved = True
  names = tensor_names.with_experts(
    tensor_names.PRE_NORM, 'block_sparse_moe.', ('w1', 'w3', 'w2')
  )

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    # The form that transformers 5 has in memory.
    joined = tensor_names.with_joined_experts(tensor_names.PRE_NORM, 'mlp.')
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    expert_fields.skip_training(f)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_local_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      normalised=True,
    )
    kind = mistral.one_kind(f, rope_json.read(f))
    experts = Experts(routing, f.size('intermediate_size'))
    return {'layer_pattern': expert_fields.with_experts(f, (kind,), experts)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    rule = expert_fields.of(config).routing
    values['num_local_experts'] = rule.experts
    values['num_experts_per_tok'] = rule.active

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    expert_fields.read_gguf(metadata, values, 'num_local_experts')
