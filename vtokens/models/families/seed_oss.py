"""Seed-OSS."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class SeedOss(Family):
  """Llama's layout with separate settings for the biases of q, k, v and o."""

  model_type = 'seed_oss'
  about = About(
    'Seed-OSS',
    'biases of q, k and v apart from that of o',
    5.7e-06,
  )
  architecture = 'SeedOssForCausalLM'
  gguf = 'seed_oss'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.normalised('residual_dropout')  # Of training.
    f.no_window()
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'out_bias': f.boolean('attention_out_bias'),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['attention_bias'] = config.qkv_bias
    values['attention_out_bias'] = config.out_bias

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    values.setdefault('attention_bias', False)
    values['attention_out_bias'] = metadata.has_tensor('blk.0.attn_output.bias')
