"""MiniMax M2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import expert_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_CORRECTION = 'layers.mlp.correction'
_LAYER = 'model.layers.{}.'


class MiniMaxM2(Family):
  """Experts in every layer, chosen by corrected sigmoids."""

  model_type = 'minimax_m2'
  about = About(
    'MiniMax M2',
    'experts, chosen by corrected sigmoids; rotation of a part, norms of whole '
    'q and k',
    6.4e-06,
  )
  architecture = 'MiniMaxM2ForCausalLM'
  gguf = 'minimax-m2'
  names = tensor_names.with_experts(
    {
      **tensor_names.PRE_NORM,
      _CORRECTION: _LAYER + 'block_sparse_moe.e_score_correction_bias',
    },
    'block_sparse_moe.',
    ('w1', 'w3', 'w2'),
  )

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    joined = tensor_names.with_joined_experts(
      {
        **tensor_names.PRE_NORM,
        _CORRECTION: _LAYER + 'mlp.e_score_correction_bias',
      },
      'mlp.',
    )
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    f.no_window()
    expert_fields.skip_training(f)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_local_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      scores='sigmoid',
      normalised=True,
      correction=True,
    )
    experts = Experts(routing, f.size('intermediate_size'))
    pattern = (LayerKind(rope_json.read(f)),)
    return {
      'qk_norm': 'projection',
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': expert_fields.with_experts(f, pattern, experts),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    rule = expert_fields.of(config).routing
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim
    values['num_local_experts'] = rule.experts
    values['num_experts_per_tok'] = rule.active

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
    expert_fields.read_gguf(metadata, values, 'num_local_experts')
    expert_fields.check_gguf_scores(metadata, expert_fields.SIGMOID)
