"""Qwen 3."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Qwen3(Family):
  """Each head of queries and keys is normed separately."""

  model_type = 'qwen3'
  about = About(
    'Qwen3 (dense)',
    'norms of q and k; head width',
    9.5e-06,
  )
  architecture = 'Qwen3ForCausalLM'
  gguf = 'qwen3'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.normalised('use_sliding_window', 'max_window_layers')
    return {
      **f.biases(),
      'qk_norm': 'head',
      'layer_pattern': f.pattern(rope_json.read(f)),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    values['use_sliding_window'] = values['sliding_window'] is not None
