"""Arcee."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP


class Arcee(Family):
  """Llama with an MLP without a gate, and squared ReLU."""

  model_type = 'arcee'
  about = About(
    'Arcee AFM 4.5B',
    'MLP without a gate, squared ReLU',
    5.8e-06,
  )
  architecture = 'ArceeForCausalLM'
  names = tensor_names.without(tensor_names.PRE_NORM, 'layers.mlp.gate')
  gguf = 'arcee'
  gguf_interleaved = True

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'relu2')
    f.no_window()
    return {
      **f.biases(),
      'activation': 'relu2',
      'mlp': PlainMLP(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = 'relu2'
