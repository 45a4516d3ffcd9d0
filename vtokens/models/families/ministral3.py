"""Ministral 3, also inside Mistral Small's wrapper."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, query_growth, rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Ministral3(Family):
  """Mistral whose queries are scaled by their position."""

  model_type = 'ministral3'
  about = About(
    'Ministral 3',
    'YaRN, queries scaled by their position, window',
    1.2e-05,
  )
  architecture = 'Ministral3ForCausalLM'
  gguf = 'mistral3'
  gguf_interleaved = True

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    f.only('layer_types', None)
    rope = rope_json.read(f, also=query_growth.ALSO)
    kind = LayerKind(rope, f.optional('sliding_window', int))
    return {'query_growth': query_growth.read(f), 'layer_pattern': (kind,)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    (kind,) = config.layer_pattern
    if kind.rope is None:
      raise AssertionError('Ministral 3 has it')
    values['rope_parameters'] = {
      **rope_json.write_parameters(kind.rope),
      **query_growth.written(config),
    }
    for field in ('rope_scaling', 'rope_theta', 'attention_bias'):
      del values[field]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    query_growth.read_gguf(metadata, values)
