"""MiniCPM3."""

import math
from collections.abc import Mapping
from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import latent_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class MiniCPM3(Family):
  """Dense, with latent attention and three scales."""

  model_type = 'minicpm3'
  about = About(
    'MiniCPM3-4B',
    'latent attention; scales of embeddings, residuals and logits',
    1.9e-06,
  )
  architecture = 'MiniCPM3ForCausalLM'
  names = latent_fields.names(tensor_names.PRE_NORM)
  own_rotation = True
  # vLLM 0.32, model_executor/models/minicpm.py: `get_input_embeddings`.
  scales_lookup = True

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    return latent_fields.names_of(config, self.names)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('mlp_bias', False)
    latent_fields.check_width(f, 'qk_rope_head_dim')
    rope = rope_json.read(f)
    depth = f.number('scale_depth', float)
    return {
      **latent_fields.read(f, rope),
      'embedding_scale': f.number('scale_emb', float),
      'residual_scale': depth / math.sqrt(f.number('num_hidden_layers')),
      'logit_divisor': f.number('hidden_size') / f.number('dim_model_base'),
      'layer_pattern': (LayerKind(rope),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    latent_fields.write(config, values)
    # Rounded: a quotient times its divisor may differ in the last bit.
    depth = round(config.residual_scale * math.sqrt(config.num_layers), 12)
    values.update(
      scale_emb=config.embedding_scale,
      scale_depth=depth,
      dim_model_base=round(config.embed_dim / config.logit_divisor),
    )
