"""GLM 4: its first version, and GLM-4-0414."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Glm(Family):
  """Rotates neighbouring values of half of each head."""

  model_type = 'glm'
  about = About(
    'GLM-4-9B',
    'interleaved rotation of a part, biases of q, k and v, fused MLP',
    4.4e-06,
  )
  architecture = 'GlmForCausalLM'
  names = tensor_names.with_fused_mlp(tensor_names.PRE_NORM)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'interleaved': True,
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['attention_bias'] = config.qkv_bias
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim


class Glm4(Glm):
  """Also norms after attention and MLP."""

  model_type = 'glm4'
  about = About(
    'GLM-4-0414',
    'also norms after',
    6.2e-06,
  )
  architecture = 'Glm4ForCausalLM'
  names = tensor_names.with_fused_mlp(tensor_names.GLM4_NORMS)

  def read(self, f: Fields) -> dict[str, Any]:
    return {**super().read(f), 'post_norm': True}
