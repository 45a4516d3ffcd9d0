"""What Gemma 3n and Gemma 4 share."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import FULL, SLIDING, Fields
from vtokens.models.families.family import Family

_GELU = 'gelu_pytorch_tanh'
_LAYER = 'model.layers.{}.'
NAMES: Mapping[str, str] = {
  **tensor_names.BOTH_NORMS,
  'per_layer.embedding': 'model.embed_tokens_per_layer.weight',
  'per_layer.projection': 'model.per_layer_model_projection.weight',
  'per_layer.norm.scale': 'model.per_layer_projection_norm.weight',
  'layers.per_layer.gate': _LAYER + 'per_layer_input_gate.weight',
  'layers.per_layer.projection': _LAYER + 'per_layer_projection.weight',
  'layers.per_layer.norm.scale': _LAYER + 'post_per_layer_input_norm.weight',
}
# Tensors of a layer that it does not use if it reads another layer's keys.
_SHARED = ('k_proj', 'v_proj', 'k_norm', 'v_norm')


class LaterGemma(Family):
  """Inputs of each layer; layers that read another layer's keys and values.

  Attributes:
    usual_shared: `num_kv_shared_layers` where config.json does not say it.
  """

  usual_shared = 0

  def unused_tensors(self, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys and values of layers that read an earlier layer's."""
    layers = values.get('num_hidden_layers') or 0
    shared = values.get('num_kv_shared_layers', self.usual_shared) or 0
    if not isinstance(layers, int) or not isinstance(shared, int):
      return ()
    return tuple(
      f'model.layers.{i}.self_attn.{name}.'
      for i in range(max(layers - shared, 0), layers)
      for name in _SHARED
    )

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_activation', _GELU)
    return {
      **f.biases(),
      'activation': 'gelu_tanh',
      'post_norm': True,
      'qk_norm': 'head',
      'scale_embeddings': True,
      'attention_scale': 1.0,
      'logit_softcap': f.optional('final_logit_softcapping', float),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    for field in ('hidden_act', 'rope_theta', 'rope_scaling'):
      del values[field]
    family.write_layer_types(config, values)
    if values['sliding_window'] is None:
      del values['sliding_window']
    kinds = config.layer_kinds
    values.update(
      hidden_activation=_GELU,
      final_logit_softcapping=config.logit_softcap,
      hidden_size_per_layer_input=config.per_layer_dim,
      vocab_size_per_layer_input=config.per_layer_rows or config.vocab_size,
      num_kv_shared_layers=sum(kind.source is not None for kind in kinds),
      rope_parameters={
        SLIDING if kind.window else FULL: rope_json.write_parameters(kind.rope)
        for kind in kinds
        if kind.rope is not None
      },
    )


def check_padding(f: Fields) -> None:
  """Raises unless the padding is token 0, whose row virtual tokens get."""
  padding = f.values.get('pad_token_id')
  if padding not in (None, 0):
    raise f.fail(
      'pad_token_id',
      '0: virtual tokens get the row of the padding in embed_tokens_per_layer, '
      'for which servers take row 0',
    )


def sources(f: Fields, types: Sequence[str]) -> list[int | None]:
  """For each layer the earlier layer whose keys and values it reads, if any.

  Args:
    f: the fields.
    types: `layer_types`.

  Raises:
    errors.UserError: no earlier layer of a type has keys and values.
  """
  own = len(types) - count(f, 'num_kv_shared_layers')
  if own < 1 or set(types[:own]) != set(types):
    raise f.fail(
      'num_kv_shared_layers',
      'fewer, so that each of layer_types has an earlier layer with keys and '
      'values',
    )
  last = {name: i for i, name in enumerate(types[:own])}
  return [None if i < own else last[name] for i, name in enumerate(types)]


def count(f: Fields, field: str) -> int:
  """A number that may be 0; null is 0."""
  found = f.get(field)
  return 0 if found is None or found == 0 else f.number(field)
