"""Command R (Cohere) and Command R7B, Command A and Aya (Cohere 2)."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Cohere(Family):
  """Attention and MLP side by side, norms with a mean, a scale of logits."""

  model_type = 'cohere'
  about = About(
    'Command R, R+',
    'attention and MLP side by side, LayerNorm, interleaved rotation, '
    'norms of q and k, scaled logits',
    1.7e-06,
  )
  architecture = 'CohereForCausalLM'
  names = tensor_names.without(tensor_names.PRE_NORM, 'layers.mlp_norm.scale')
  norm_eps = 'layer_norm_eps'
  gguf: str | None = 'command-r'

  def read(self, f: Fields) -> dict[str, Any]:
    f.no_window()
    return {
      **self.read_common(f),
      'qk_norm': 'heads' if f.boolean('use_qk_norm') else 'none',
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def read_common(self, f: Fields) -> dict[str, Any]:
    """Fields that both versions share."""
    f.only('hidden_act', 'silu')
    return {
      **f.biases(),
      'norm': 'layer',
      'parallel': True,
      'interleaved': True,
      'logit_scale': f.number('logit_scale', float),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['logit_scale'] = config.logit_scale
    values['use_qk_norm'] = config.qk_norm == 'heads'

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_common(metadata, values)
    values['use_qk_norm'] = metadata.has_tensor('blk.0.attn_q_norm.weight')

  def read_gguf_common(
    self, metadata: 'Metadata', values: dict[str, Any]
  ) -> None:
    """Metadata that both versions share."""
    scale = metadata.optional('{arch}.logit_scale', float)
    values['logit_scale'] = scale or 1.0


class Cohere2(Cohere):
  """Layers without a window have no positions."""

  model_type = 'cohere2'
  about = About(
    'Command R7B, Command A, Aya',
    'also windows, other layers without positions',
    2.4e-06,
  )
  architecture = 'Cohere2ForCausalLM'
  gguf = 'cohere2'

  def read(self, f: Fields) -> dict[str, Any]:
    return {
      **self.read_common(f),
      'layer_pattern': f.pattern(None, rope_json.read(f)),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['logit_scale'] = config.logit_scale
    family.write_layer_types(config, values)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_common(metadata, values)
    metadata.layer_types(values, period=4)
    metadata.same_theta(values)
