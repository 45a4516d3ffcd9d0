"""Mistral and Ministral. GGUF files of both say llama."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import family, rope_json
from vtokens.models.families.config_json import LAYER_TYPES, Fields
from vtokens.models.families.family import About, Family


class Mistral(Family):
  """All layers have the same window, or none."""

  model_type = 'mistral'
  about = About(
    'Mistral 7B v0.1 to v0.3, Nemo, Small',
    'sliding window, head width',
    2.5e-05,
    'as `llama` (*)',
  )
  architecture = 'MistralForCausalLM'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    advice = "; for alternating layers model_type is 'ministral'"
    return {'layer_pattern': (one_kind(f, rope_json.read(f), advice),)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)


def one_kind(f: Fields, rope: Rope, advice: str = '') -> LayerKind:
  """The kind of all layers in a family whose layers have the same window.

  Args:
    f: the fields.
    rope: rotary embedding of all layers.
    advice: added to the message.

  Raises:
    errors.UserError: `layer_types` is set.
  """
  if f.per_layer('layer_types', LAYER_TYPES):
    raise f.fail('layer_types', f'none (transformers ignores it{advice})')
  return LayerKind(rope, f.optional('sliding_window', int))


class Ministral(Family):
  """Some layers have a window, others none."""

  model_type = 'ministral'
  about = About(
    'Ministral',
    'windows in some layers',
    3.1e-05,
  )
  architecture = 'MinistralForCausalLM'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('attention_bias', False)
    return {'layer_pattern': f.pattern(rope_json.read(f))}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
