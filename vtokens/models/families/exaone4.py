"""EXAONE 4."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Exaone4(Family):
  """Norms after; beside layers with windows, the others have no positions."""

  model_type = 'exaone4'
  about = About(
    'EXAONE 4',
    'norms after, norms of q and k, windows, other layers without positions',
    6.2e-06,
  )
  architecture = 'Exaone4ForCausalLM'
  names = tensor_names.POST_NORM

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    f.normalised('sliding_window_pattern')
    rope = rope_json.read(f)
    pattern = f.pattern(None, rope)
    if f.optional('sliding_window', int) is None:
      pattern = (LayerKind(rope),)
    return {
      'qk_norm': 'head',
      'pre_norm': False,
      'post_norm': True,
      'layer_pattern': pattern,
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    del values['attention_bias']
