"""Youtu-LLM."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import latent_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Part

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Youtu(Family):
  """Llama with latent attention."""

  model_type = 'youtu'
  about = About(
    'Youtu-LLM-2B',
    'latent attention',
    4.6e-06,
    'yes',
  )
  architecture = 'YoutuForCausalLM'
  names = latent_fields.names(tensor_names.PRE_NORM)
  own_rotation = True

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    return latent_fields.names_of(config, self.names)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.normalised('embedding_initializer_range')
    latent_fields.check_width(f, 'qk_rope_head_dim')
    rope = rope_json.read(f)
    return {
      **latent_fields.read(f, rope),
      'interleaved': f.boolean('rope_interleave'),
      'layer_pattern': (LayerKind(rope),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    latent_fields.write(config, values)
    values['rope_interleave'] = config.interleaved

  def gguf_joined(self, config: DecoderConfig) -> Mapping[str, Sequence[Part]]:
    return latent_fields.GGUF_PARTS

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    latent_fields.read_gguf(metadata, values)
    # Of experts, which it has not.
    for key in ('feed_forward_length', 'shared_count', 'weights_scale'):
      metadata.get('{arch}.expert_' + key)
    layers = values['num_hidden_layers']
    dense = metadata.number('{arch}.leading_dense_block_count', default=layers)
    if dense < layers:
      raise metadata.unexpected(
        '{arch}.leading_dense_block_count', dense, f'{layers}, without experts'
      )
