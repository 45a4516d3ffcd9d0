"""Ministral 3, also inside Mistral Small's wrapper."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, QueryGrowth
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_BETA, _LENGTH = 'llama_4_scaling_beta', 'original_max_position_embeddings'


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
    # transformers does not read the inner max_position_embeddings.
    rope = rope_json.read(f, also=(_BETA, 'max_position_embeddings'))
    inner = f.get('rope_parameters') or {}
    growth = QueryGrowth(
      f.number(_BETA, float, inside=inner), f.number(_LENGTH, inside=inner)
    )
    kind = LayerKind(rope, f.optional('sliding_window', int))
    return {'query_growth': growth, 'layer_pattern': (kind,)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    (kind,) = config.layer_pattern
    growth = config.query_growth
    if kind.rope is None or growth is None:
      raise AssertionError('Ministral 3 has both')
    values['rope_parameters'] = {
      **rope_json.write_parameters(kind.rope),
      _BETA: growth.beta,
      _LENGTH: growth.length,
    }
    for field in ('rope_scaling', 'rope_theta', 'attention_bias'):
      del values[field]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    beta = metadata.number('{arch}.attention.temperature_scale', float)
    scaling = values.pop('rope_scaling')
    if not scaling or scaling['rope_type'] != 'yarn':
      raise metadata.unexpected(
        '{arch}.rope.scaling.type',
        metadata.get('{arch}.rope.scaling.type'),
        "'yarn' beside attention.temperature_scale",
      )
    # Older files spell it out.
    key = '{arch}.attention.temperature_length'
    if metadata.number(key, default=scaling[_LENGTH]) != scaling[_LENGTH]:
      raise metadata.unexpected(key, metadata.get(key), str(scaling[_LENGTH]))
    values['rope_parameters'] = {
      **scaling,
      'rope_theta': values.pop('rope_theta'),
      _BETA: beta,
    }
    del values[_LENGTH]
