"""Apertus."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.xielu import XIELUMLP


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

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'xielu')
    f.no_window()
    rope = rope_json.read(f)
    if 'rope_scaling' not in f.values:
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
