"""EXAONE 3.0 and 3.5."""

from collections.abc import Mapping
from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Exaone(Family):
  """Llama with other names of fields and tensors."""

  model_type = 'exaone'
  about = About(
    'EXAONE 3.0, 3.5',
    'other names of tensors, RoPE scaling llama3; biases',
    7.0e-06,
  )
  architecture = 'LlamaForCausalLM'
  names = tensor_names.EXAONE
  aliases: Mapping[str, str] = {
    'num_layers': 'num_hidden_layers',
    'layer_norm_epsilon': 'rms_norm_eps',
    'activation_function': 'hidden_act',
  }
  gguf = 'exaone'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('mlp_bias', False)
    f.no_window()
    return {**f.biases(), 'layer_pattern': (LayerKind(rope_json.read(f)),)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    # Programs other than transformers know the older names alone.
    for old, new in self.aliases.items():
      values[old] = values[new]
