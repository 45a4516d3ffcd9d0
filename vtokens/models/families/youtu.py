"""Youtu-LLM."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import latent_fields
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.latent_family import LatentFamily

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Youtu(LatentFamily):
  """Llama with latent attention."""

  model_type = 'youtu'
  about = About(
    'Youtu-LLM-2B',
    'latent attention',
    4.6e-06,
    'yes, as `deepseek_v3`',
  )
  architecture = 'YoutuForCausalLM'

  def read(self, f: Fields) -> dict[str, Any]:
    f.normalised('embedding_initializer_range')
    return {**super().read(f), 'interleaved': f.boolean('rope_interleave')}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    values['rope_interleave'] = config.interleaved

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    latent_fields.check_gguf_scaling(metadata, values)
    # Of experts, which it has not.
    for key in ('feed_forward_length', 'shared_count', 'weights_scale'):
      metadata.get('{arch}.expert_' + key)
    layers = values['num_hidden_layers']
    dense = metadata.number('{arch}.leading_dense_block_count', default=layers)
    if dense < layers:
      raise metadata.unexpected(
        '{arch}.leading_dense_block_count', dense, f'{layers}, without experts'
      )
