"""SmolLM 3."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import (
  SLIDING,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class SmolLM3(Family):
  """Some layers have no positions."""

  model_type = 'smollm3'
  about = About(
    'SmolLM3',
    'layers without positions',
    2.7e-05,
  )
  architecture = 'SmolLM3ForCausalLM'
  gguf = 'smollm3'
  gguf_interleaved = True

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.normalised('no_rope_layer_interval')
    turned = f.per_layer('no_rope_layers', (0, 1)) or []
    used = f.boolean('use_sliding_window')
    window = f.optional('sliding_window', int) if used else None
    f.normalised('sliding_window')
    types = f.layer_types(window)
    rope = rope_json.read(f)
    return {
      **f.biases(),
      'layer_pattern': shortest_pattern(
        [
          LayerKind(rope if t else None, window if kind == SLIDING else None)
          for t, kind in zip(turned, types, strict=True)
        ]
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    values['use_sliding_window'] = values['sliding_window'] is not None
    kinds = config.layer_kinds
    values['no_rope_layers'] = [int(kind.rope is not None) for kind in kinds]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    # Files do not say which; llama.cpp skips every fourth.
    values['no_rope_layers'] = [
      int((i + 1) % 4 != 0) for i in range(values['num_hidden_layers'])
    ]
