"""Qwen 2 and 2.5."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Qwen2(Family):
  """Queries, keys and values have biases."""

  model_type = 'qwen2'
  about = About(
    'Qwen1.5, 2, 2.5',
    'biases of q, k and v; YaRN; windows',
    3.6e-05,
  )
  architecture = 'Qwen2ForCausalLM'
  gguf = 'qwen2'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    # Configs do not have this field; transformers' code sets the biases.
    f.only('attention_bias', True)
    f.normalised('use_sliding_window', 'max_window_layers')
    return {'qkv_bias': True, 'layer_pattern': f.pattern(rope_json.read(f))}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    values['use_sliding_window'] = values['sliding_window'] is not None
    del values['attention_bias']
