"""GLM 4.5 to 4.7."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import expert_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_SHARED = tensor_names.with_shared_expert(tensor_names.PRE_NORM)


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
  gguf = 'glm4moe'
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
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'qk_norm': 'head' if f.boolean('use_qk_norm') else 'none',
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': expert_fields.with_experts(
        f,
        (LayerKind(rope_json.read(f)),),
        expert_fields.corrected(f),
        expert_fields.first_dense(f),
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    rotated = config.rotary_dim or config.head_dim
    expert_fields.write_grouped(config, values)
    values |= {
      'attention_bias': config.qkv_bias,
      'use_qk_norm': config.qk_norm != 'none',
      'partial_rotary_factor': rotated / config.head_dim,
      'num_mtp_layers': 0,
    }

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
    expert_fields.read_gguf(
      metadata, values, 'n_routed_experts', 'moe_intermediate_size'
    )
    expert_fields.read_gguf_scores(metadata, values)
    expert_fields.check_gguf_scores(
      metadata, expert_fields.SIGMOID, default=expert_fields.SIGMOID
    )
    values |= {
      'use_qk_norm': metadata.has_tensor('blk.0.attn_q_norm.weight'),
      'first_k_dense_replace': metadata.per_layer(
        '{arch}.leading_dense_block_count', 1, 0
      )[0],
    }
