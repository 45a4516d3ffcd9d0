"""Granite 3 with experts."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import expert_fields, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.granite import Granite
from vtokens.models.mlps.experts import Experts

_MLP = 'model.layers.{}.block_sparse_moe.'
_GATE_UP = _MLP + 'input_linear.weight'
_NAMES = {
  **tensor_names.PRE_NORM,
  'layers.mlp.router': _MLP + 'router.layer.weight',
  'layers.mlp.experts.gate': _GATE_UP,
  'layers.mlp.experts.up': _GATE_UP,
  'layers.mlp.experts.down': _MLP + 'output_linear.weight',
}

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class GraniteMoe(Granite):
  """Granite with experts in every layer."""

  model_type = 'granitemoe'
  about = About(
    'Granite 3 1B-A400M, 3B-A800M',
    'experts; multipliers of embeddings, scores, residuals and logits',
    2.4e-06,
  )
  architecture = 'GraniteMoeForCausalLM'
  gguf = 'granitemoe'
  names = _NAMES

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    # The form that transformers 5 has in memory.
    joined = {
      **tensor_names.with_joined_experts(
        tensor_names.PRE_NORM, 'block_sparse_moe.'
      ),
      'layers.mlp.router': _MLP + 'router.weight',
    }
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    expert_fields.skip_training(f)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_local_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      scores='chosen',
    )
    experts = Experts(routing, f.size('intermediate_size'))
    found = super().read(f)
    pattern = found['layer_pattern']
    return {
      **found,
      'layer_pattern': expert_fields.with_experts(f, pattern, experts),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    rule = expert_fields.of(config).routing
    values['num_local_experts'] = rule.experts
    values['num_experts_per_tok'] = rule.active

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    expert_fields.read_gguf(metadata, values, 'num_local_experts')
