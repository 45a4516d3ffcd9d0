"""StableLM 3B and StableLM 2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class StableLM(Family):
  """LayerNorm and partial rotation; attention and MLP may be side by side."""

  model_type = 'stablelm'
  about = About(
    'StableLM 3B, StableLM 2 1.6B',
    'LayerNorm, partial rotation, biases of q, k and v',
    1.9e-06,
  )
  architecture = 'StableLmForCausalLM'
  names = tensor_names.LAYER_NORM
  norm_eps = 'layer_norm_eps'
  gguf = 'stablelm'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    # A norm with tensors for each head, of StableLM 2 12B.
    f.only('qk_layernorm', False)
    f.normalised('hidden_dropout')  # Of training.
    f.no_window()
    return {
      'qkv_bias': f.boolean('use_qkv_bias'),
      'norm': 'layer',
      'norm_bias': True,
      'parallel': f.boolean('use_parallel_residual'),
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['use_qkv_bias'] = config.qkv_bias
    values['use_parallel_residual'] = config.parallel
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim
    del values['attention_bias']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
    values['use_qkv_bias'] = metadata.has_tensor('blk.0.attn_q.bias')
    # llama.cpp ignores the key: the norm tells.
    metadata.get('{arch}.use_parallel_residual')
    values['use_parallel_residual'] = not metadata.has_tensor(
      'blk.0.ffn_norm.weight'
    )
