"""Nemotron 4 and Minitron."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Nemotron(Family):
  """LayerNorm with 1 + w, squared ReLU without a gate, partial rotation."""

  model_type = 'nemotron'
  about = About(
    'Nemotron 4, Minitron',
    'LayerNorm with 1 + w, MLP without a gate, squared ReLU, partial rotation',
    4.1e-05,
  )
  architecture = 'NemotronForCausalLM'
  names = tensor_names.without(tensor_names.LAYER_NORM, 'layers.mlp.gate')
  norm_eps = 'norm_eps'
  gguf = 'nemotron'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'relu2')
    f.no_window()
    return {
      **f.biases(),
      'norm': 'layer',
      'norm_bias': True,
      'norm_offset': 1.0,
      'activation': 'relu2',
      'mlp': PlainMLP(),
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = 'relu2'
    rotated = config.rotary_dim or config.head_dim
    values['partial_rotary_factor'] = rotated / config.head_dim

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    # The converter adds the model's offset of 1 to the weights.
    return Stored(offset=1.0 if name.endswith('norm.weight') else 0.0)
