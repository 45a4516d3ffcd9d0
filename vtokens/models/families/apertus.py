"""Apertus."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.xielu import XIELUMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Apertus(Family):
  """Norms of heads, and an MLP without a gate whose activation is trained."""

  model_type = 'apertus'
  about = About(
    'Apertus',
    'norms of q and k, MLP without a gate, xIELU',
    5.2e-06,
  )
  architecture = 'ApertusForCausalLM'
  names = tensor_names.APERTUS
  gguf = 'apertus'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'xielu')
    f.no_window()
    rope = rope_json.read(f)
    if not f.values.get('rope_scaling'):
      f.only('rope_theta', rope.theta, None)  # transformers would ignore it.
    return {
      **f.biases(),
      'qk_norm': 'head',
      'mlp': XIELUMLP(),
      'layer_pattern': (LayerKind(rope),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = 'xielu'
    # Without it the config class stretches positions.
    rope = config.layer_pattern[0].rope
    assert rope is not None
    values['rope_parameters'] = rope_json.write_parameters(rope)
    del values['rope_scaling'], values['rope_theta']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    # Without it the config class stretches positions.
    values['rope_parameters'] = {
      **(values.pop('rope_scaling') or {'rope_type': 'default'}),
      'rope_theta': values.pop('rope_theta'),
    }

  def gguf_numbers(
    self, metadata: 'Metadata', config: DecoderConfig
  ) -> dict[str, np.ndarray]:
    numbers = {}
    for path, shape in (
      ('alpha_p', (1,)),
      ('alpha_n', (1,)),
      ('beta', ()),
      ('eps', ()),
    ):
      values = metadata.numbers(f'xielu.{path}', config.num_layers)
      template = self.names[f'layers.mlp.{path}']
      for i, value in enumerate(values):
        numbers[template.format(i)] = np.full(shape, value, np.float32)
    return numbers
