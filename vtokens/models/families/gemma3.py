"""Gemma 3 for text."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import FULL, SLIDING, Fields
from vtokens.models.families.family import About
from vtokens.models.families.gemma2 import Gemma2

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Gemma3(Gemma2):
  """Layers with a window have their own rotary embedding."""

  model_type = 'gemma3_text'
  about = About(
    'Gemma 3',
    'also two RoPE bases, norms of q and k',
    5.4e-06,
  )
  architecture = 'Gemma3ForCausalLM'
  gguf = 'gemma3'
  gguf_layers_of_27b = 62

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_activation', 'gelu_pytorch_tanh')
    # transformers reads this field and does not use it.
    f.only('attn_logit_softcapping', None)
    theta = f.number('rope_local_base_freq', float, 1e4, inside=f.values)
    return {
      **self.read_common(f),
      'post_norm': True,
      'qk_norm': 'head',
      'query_scalar': f.number('query_pre_attn_scalar'),
      'logit_softcap': f.optional('final_logit_softcapping', float),
      'layer_pattern': f.pattern(
        rope_json.read_of_type(f, FULL, 1e6),
        rope_json.read_of_type(f, SLIDING, theta),
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    for kind in config.layer_pattern:
      if kind.window and kind.rope:
        values['rope_local_base_freq'] = kind.rope.theta

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_common(metadata, values)
    metadata.layer_types(values, period=6)
    values['rope_local_base_freq'] = metadata.number(
      '{arch}.rope.freq_base_swa', float, 10_000.0
    )
