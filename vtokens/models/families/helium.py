"""Helium."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Helium(Family):
  """Llama that rotates neighbouring values."""

  model_type = 'helium'
  about = About('Helium 1', 'interleaved rotation', 6.5e-06)
  architecture = 'HeliumForCausalLM'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'interleaved': True,
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['attention_bias'] = config.qkv_bias
