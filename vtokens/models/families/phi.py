"""Phi 1, 1.5 and 2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

# Two names of the same function.
_GELU = ('gelu_new', 'gelu_pytorch_tanh')


class Phi(Family):
  """Attention and MLP side by side, biases everywhere, MLP without a gate."""

  model_type = 'phi'
  about = About(
    'Phi-1, 1.5, 2',
    'attention and MLP side by side, LayerNorm, biases, partial rotation, '
    'MLP without a gate',
    1.9e-06,
  )
  architecture = 'PhiForCausalLM'
  names = tensor_names.PHI
  norm_eps = 'layer_norm_eps'
  gguf = 'phi2'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', *_GELU)
    f.only('qk_layernorm', False)
    f.no_window()
    return {
      'qkv_bias': True,
      'out_bias': True,
      'head_bias': True,
      'norm': 'layer',
      'norm_bias': True,
      'parallel': True,
      'activation': 'gelu_tanh',
      'mlp': PlainMLP(bias=True),
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = _GELU[0]
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim
    del values['attention_bias']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
