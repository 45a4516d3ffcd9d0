"""GLM 4: its first version, and GLM-4-0414."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Glm(Family):
  """Rotates neighbouring values of half of each head."""

  model_type = 'glm'
  about = About(
    'GLM-4-9B',
    'interleaved rotation of a part, biases of q, k and v, fused MLP',
    3.8e-06,
  )
  architecture = 'GlmForCausalLM'
  names = tensor_names.with_fused_mlp(tensor_names.PRE_NORM)
  gguf: str | None = 'chatglm'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'interleaved': True,
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['attention_bias'] = config.qkv_bias
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
    values.setdefault('attention_bias', False)


class Glm4(Glm):
  """Also norms after attention and MLP."""

  model_type = 'glm4'
  about = About(
    'GLM-4-0414',
    'also norms after',
    7.0e-06,
  )
  architecture = 'Glm4ForCausalLM'
  names = tensor_names.with_fused_mlp(tensor_names.GLM4_NORMS)
  gguf = 'glm4'

  def read(self, f: Fields) -> dict[str, Any]:
    return {**super().read(f), 'post_norm': True}


class Glm4Vision(Glm4):
  """GGUF files of GLM-4V, whose q and k are in another order.

  llama.cpp rotates halves there, so its converter puts the first values of all
  pairs before the second ones. Only `gguf_config.family_of` uses it.
  """

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    # Of axes that have the same position for text.
    metadata.get('{arch}.rope.dimension_sections')

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    if not ('.self_attn.q_proj.' in name or '.self_attn.k_proj.' in name):
      return Stored()
    width = config.head_dim
    rotated = config.rotary_dim or width
    order = np.arange(width)
    order[:rotated] = np.arange(rotated).reshape(2, -1).T.reshape(-1)
    heads = np.arange(0, shape[0], width)
    return Stored((heads[:, None] + order).reshape(-1))
