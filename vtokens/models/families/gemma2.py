"""Gemma 2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.gemma import Gemma

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Gemma2(Gemma):
  """Norms before and after, softcaps, a window in every other layer."""

  model_type = 'gemma2'
  about = About(
    'Gemma 2',
    'also soft caps, alternating windows, norms after',
    4.3e-06,
  )
  architecture = 'Gemma2ForCausalLM'
  names = tensor_names.BOTH_NORMS
  gguf: str | None = 'gemma2'
  # llama.cpp recognises the 27B model, which has another query scale, by its
  # number of layers.
  gguf_layers_of_27b = 46

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_activation', 'gelu_pytorch_tanh')
    return {
      **self.read_common(f),
      'post_norm': True,
      'query_scalar': f.number('query_pre_attn_scalar'),
      'attention_softcap': f.optional('attn_logit_softcapping', float),
      'logit_softcap': f.optional('final_logit_softcapping', float),
      'layer_pattern': f.pattern(rope_json.read(f)),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    family.write_layer_types(config, values)
    values.update(
      query_pre_attn_scalar=config.query_scalar,
      attn_logit_softcapping=config.attention_softcap,
      final_logit_softcapping=config.logit_softcap,
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_common(metadata, values)
    metadata.layer_types(values, period=2)
    if values['sliding_window'] is None:
      del values['sliding_window']

  def read_gguf_common(
    self, metadata: 'Metadata', values: dict[str, Any]
  ) -> None:
    """Metadata that Gemma 2 and 3 share."""
    super().read_gguf(metadata, values)
    large = values['num_hidden_layers'] == self.gguf_layers_of_27b
    per_head = values['hidden_size'] // values['num_attention_heads']
    values['query_pre_attn_scalar'] = per_head if large else values['head_dim']
    # Early files lack these. llama.cpp and transformers have the same defaults.
    for field in ('attn_logit_softcapping', 'final_logit_softcapping'):
      if metadata.get('{arch}.' + field) is not None:
        values[field] = metadata.optional('{arch}.' + field, float)
