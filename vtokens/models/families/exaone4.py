"""EXAONE 4."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

# llama.cpp recognises the 32B model, which has windows, by its number of
# layers.
_WITH_WINDOW, _WINDOW = 64, 4096


class Exaone4(Family):
  """Norms after; beside layers with windows, the others have no positions."""

  model_type = 'exaone4'
  about = About(
    'EXAONE 4',
    'norms after, norms of q and k, windows, other layers without positions',
    4.9e-06,
  )
  architecture = 'Exaone4ForCausalLM'
  names = tensor_names.POST_NORM
  gguf = 'exaone4'

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

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    window = values['sliding_window']
    if values['num_hidden_layers'] == _WITH_WINDOW:
      values['sliding_window'] = window or _WINDOW
      metadata.layer_types(values, period=4)
      metadata.same_theta(values)
    elif window:
      raise metadata.unexpected(
        '{arch}.attention.sliding_window',
        window,
        f'none: llama.cpp has windows in models of {_WITH_WINDOW} layers alone',
      )
    else:
      metadata.layer_types(values, period=1)  # No layer has a window.
