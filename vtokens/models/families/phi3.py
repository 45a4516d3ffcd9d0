"""Phi-3, 3.5 and 4-mini."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Phi3(Family):
  """Fused weights, longrope, and rotation of part of each head."""

  model_type = 'phi3'
  about = About(
    'Phi-3, Phi-3.5 mini, Phi-4, Phi-4 mini',
    'fused weights, longrope, partial rotation, window',
    4.7e-05,
  )
  architecture = 'Phi3ForCausalLM'
  names = tensor_names.FUSED
  gguf = 'phi3'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    f.only('layer_types', None)
    f.normalised('original_max_position_embeddings')
    kind = LayerKind(rope_json.read(f), f.optional('sliding_window', int))
    return {'rotary_dim': f.rotary_dim(), 'layer_pattern': (kind,)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    if config.rotary_dim is not None:
      values['partial_rotary_factor'] = config.rotary_dim / config.head_dim
    rope = config.layer_pattern[0].rope
    if rope is not None and rope.type == 'longrope':
      values['original_max_position_embeddings'] = rope.original_max_positions

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    rotated = metadata.rotary_dim(values['head_dim'])
    if rotated != values['head_dim']:
      values['partial_rotary_factor'] = rotated / values['head_dim']
