"""ERNIE 4.5 (dense)."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Ernie45(Family):
  """Llama that rotates neighbouring values."""

  model_type = 'ernie4_5'
  about = About(
    'ERNIE 4.5 0.3B',
    'interleaved rotation, head width',
    6.3e-06,
  )
  architecture = 'Ernie4_5ForCausalLM'
  gguf = 'ernie4_5'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('use_bias', False, None)
    f.no_window()
    kind = LayerKind(rope_json.read(f))
    return {'interleaved': True, 'layer_pattern': (kind,)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    del values['attention_bias']
