"""MiniCPM3."""

import math
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.latent_family import LatentFamily

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class MiniCPM3(LatentFamily):
  """Dense, with latent attention and three scales."""

  model_type = 'minicpm3'
  about = About(
    'MiniCPM3-4B',
    'latent attention; scales of embeddings, residuals and logits',
    1.9e-06,
  )
  architecture = 'MiniCPM3ForCausalLM'
  gguf = 'minicpm3'
  # vLLM 0.32, model_executor/models/minicpm.py: `get_input_embeddings`.
  scales_lookup = True

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('mlp_bias', False)
    depth = f.number('scale_depth', float)
    return {
      **super().read(f),
      'embedding_scale': f.number('scale_emb', float),
      'residual_scale': depth / math.sqrt(f.number('num_hidden_layers')),
      'logit_divisor': f.number('hidden_size') / f.number('dim_model_base'),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    # Rounded: a quotient times its divisor may differ in the last bit.
    depth = round(config.residual_scale * math.sqrt(config.num_layers), 12)
    values.update(
      scale_emb=config.embedding_scale,
      scale_depth=depth,
      dim_model_base=round(config.embed_dim / config.logit_divisor),
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    del values['rope_interleave']
    # llama.cpp's; no file says them (src/models/minicpm3.cpp).
    values.update(scale_emb=12.0, scale_depth=1.4, dim_model_base=256)
