"""GLM 4.5 to 4.7."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.experts import Experts
from vtokens.models.families import expert_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

_MLP = 'model.layers.{}.mlp.'
_SHARED = {
  **tensor_names.PRE_NORM,
  'layers.mlp.correction': _MLP + 'gate.e_score_correction_bias',
  'layers.mlp.shared.gate': _MLP + 'shared_experts.gate_proj.weight',
  'layers.mlp.shared.up': _MLP + 'shared_experts.up_proj.weight',
  'layers.mlp.shared.down': _MLP + 'shared_experts.down_proj.weight',
}


class Glm4Moe(Family):
  """The first layers have no experts, the others also an MLP for all tokens."""

  model_type = 'glm4_moe'
  about = About(
    'GLM-4.5, 4.6, 4.7, Air',
    'experts after the first layers, chosen by corrected sigmoids, and an MLP '
    'for all tokens; rotation of a part, norms of q and k',
    5.4e-06,
  )
  architecture = 'Glm4MoeForCausalLM'
  names = tensor_names.with_experts(_SHARED, 'mlp.')
  extra_layers = True

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    joined = tensor_names.with_joined_experts(_SHARED, 'mlp.')
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    expert_fields.skip_training(f)
    # Layers that predict further tokens are not read.
    f.normalised('num_mtp_layers', 'num_nextn_predict_layers')
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'n_routed_experts'),
      expert_fields.count(f, 'num_experts_per_tok'),
      scores='sigmoid',
      normalised=f.boolean('norm_topk_prob', True),
      floor=1e-20,
      scale=f.number('routed_scaling_factor', float),
      correction=True,
      groups=f.number('n_group'),
      active_groups=f.number('topk_group'),
    )
    width = f.number('moe_intermediate_size')
    shared = width * f.number('n_shared_experts')
    dense = f.get('first_k_dense_replace')
    number = f.number('num_hidden_layers')
    if type(dense) is not int or not 0 <= dense < number:
      raise f.fail('first_k_dense_replace', f'a number below {number}', dense)
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'qk_norm': 'head' if f.boolean('use_qk_norm') else 'none',
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': expert_fields.with_experts(
        f,
        (LayerKind(rope_json.read(f)),),
        Experts(routing, width, shared=shared),
        [i >= dense for i in range(number)],
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    experts = expert_fields.of(config)
    rule = experts.routing
    rotated = config.rotary_dim or config.head_dim
    kinds = config.layer_kinds
    values |= {
      'attention_bias': config.qkv_bias,
      'use_qk_norm': config.qk_norm != 'none',
      'partial_rotary_factor': rotated / config.head_dim,
      'n_routed_experts': rule.experts,
      'num_experts_per_tok': rule.active,
      'norm_topk_prob': rule.normalised,
      'routed_scaling_factor': rule.scale,
      'n_group': rule.groups,
      'topk_group': rule.active_groups,
      'moe_intermediate_size': experts.width,
      'n_shared_experts': experts.shared // experts.width,
      'first_k_dense_replace': sum(kind.mlp is None for kind in kinds),
      'num_mtp_layers': 0,
    }
