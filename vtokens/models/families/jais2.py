"""Jais 2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Jais2(Family):
  """LayerNorm, biases, squared ReLU without a gate."""

  model_type = 'jais2'
  about = About(
    'Jais 2',
    'LayerNorm, biases, MLP without a gate, squared ReLU',
    4.3e-06,
  )
  architecture = 'Jais2ForCausalLM'
  names = tensor_names.JAIS2
  norm_eps = 'layer_norm_eps'
  gguf = 'jais2'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'relu2')
    f.no_window()
    return {
      **f.biases(),
      'norm': 'layer',
      'norm_bias': True,
      'activation': 'relu2',
      'mlp': PlainMLP(bias=f.boolean('mlp_bias')),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = 'relu2'
    assert isinstance(config.mlp, PlainMLP)
    values['mlp_bias'] = config.mlp.bias

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    values['mlp_bias'] = metadata.has_tensor('blk.0.ffn_up.bias')
    values.setdefault('attention_bias', False)
