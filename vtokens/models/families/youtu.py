"""Youtu-LLM."""

from collections.abc import Mapping
from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import latent_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Youtu(Family):
  """Llama with latent attention."""

  model_type = 'youtu'
  about = About(
    'Youtu-LLM-2B',
    'latent attention',
    4.6e-06,
  )
  architecture = 'YoutuForCausalLM'
  names = latent_fields.names(tensor_names.PRE_NORM)
  own_rotation = True

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    return latent_fields.names_of(config, self.names)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.normalised('embedding_initializer_range')
    latent_fields.check_width(f, 'qk_rope_head_dim')
    rope = rope_json.read(f)
    return {
      **latent_fields.read(f, rope),
      'interleaved': f.boolean('rope_interleave'),
      'layer_pattern': (LayerKind(rope),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    latent_fields.write(config, values)
    values['rope_interleave'] = config.interleaved
