"""Code World Model."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

_THETA = 1e6


class Cwm(Family):
  """Llama's layout with windows in some layers."""

  model_type = 'cwm'
  about = About(
    'Code World Model',
    'windows in some layers, RoPE scaling llama3',
    5.5e-06,
  )
  architecture = 'CwmForCausalLM'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    if not (f.values.get('rope_parameters') or f.values.get('rope_scaling')):
      # transformers takes its own default then.
      f.only('rope_theta', _THETA)
    return {'layer_pattern': f.pattern(rope_json.read(f))}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    del values['attention_bias']
