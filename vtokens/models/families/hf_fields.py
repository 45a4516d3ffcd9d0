"""Fields of a Hugging Face `config.json`, checked as they are read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.host import errors
from vtokens.models import rope as rope_lib
from vtokens.models.decoder_config import Rope

# What each type of rotary scaling may say.
_ROPE_COMMON = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
_STRETCHED = _ROPE_COMMON | {'factor', 'original_max_position_embeddings'}
_ROPE_FIELDS = {
  # transformers writes the length into Phi-3's even where nothing is scaled.
  'default': _ROPE_COMMON | {'original_max_position_embeddings'},
  'linear': _STRETCHED,
  'dynamic': _STRETCHED,
  'llama3': _STRETCHED | {'low_freq_factor', 'high_freq_factor'},
  'yarn': _STRETCHED
  | {
    'attention_factor',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
    'truncate',
  },
  'longrope': _STRETCHED | {'attention_factor', 'short_factor', 'long_factor'},
}


# Largest integers. Nothing may be sized by a number of a file before the shapes
# of the weights confirm it; lists of layers and frequencies are made earlier.
_MOST = {
  'num_hidden_layers': 10_000,
  'hidden_size': 1 << 20,
  'head_dim': 1 << 20,
  # Of no array.
  'max_position_embeddings': 1 << 53,
  'original_max_position_embeddings': 1 << 53,
}
_MOST_ELSEWHERE = (1 << 31) - 1  # Of int32.
# Of float32, in which the model computes.
_LARGEST_FLOAT = 3.4e38


class Fields:
  """A `config.json` whose values are checked as they are read."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values = values
    self.where = where

  def fail(
    self, field: str, expected: str, found: Any = ...
  ) -> errors.UserError:
    found = self.values.get(field) if found is ... else found
    found = 'missing' if found is None else errors.shorten(repr(found))
    return errors.UserError(
      f'{self.where}: {field} is {found}, expected {expected}'
    )

  def number(
    self,
    field: str,
    kind: type = int,
    default: Any = None,
    inside: Mapping[str, Any] | None = None,
  ) -> Any:
    """A positive number; a missing or null one is the default, if any."""
    value = (self.values if inside is None else inside).get(field)
    value = default if value is None else value
    # bool is an int to Python, and 1 is a valid float.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise self.fail(field, f'a positive {kind.__name__}', value)
    most: float = _LARGEST_FLOAT
    if kind is int:
      most = _MOST.get(field, _MOST_ELSEWHERE)
    if value > most:
      raise self.fail(
        field, f'a positive {kind.__name__} of at most {most}', value
      )
    return kind(value)

  def optional(self, field: str, kind: type, default: Any = None) -> Any:
    """A positive number or null; a missing one is the default."""
    if self.values.get(field, default) is None:
      return None
    return self.number(field, kind, default)

  def boolean(
    self,
    field: str,
    default: bool,
    inside: Mapping[str, Any] | None = None,
  ) -> bool:
    value = (self.values if inside is None else inside).get(field)
    value = default if value is None else value
    if not isinstance(value, bool):
      raise self.fail(field, 'true or false', value)
    return value

  def only(self, field: str, *supported: Any) -> None:
    """Raises unless a field is missing or has a value that is implemented."""
    value = self.values.get(field, supported[0])
    if value not in supported:
      raise self.fail(
        field, f'{" or ".join(map(repr, supported))} (others: not supported)'
      )

  def per_layer(self, field: str, values: Sequence[Any]) -> list[Any] | None:
    """One of the values for each layer, or None if the field is not there."""
    found = self.values.get(field)
    if found is None:
      return None
    count = self.number('num_hidden_layers')
    if (
      not isinstance(found, list)
      or len(found) != count
      or not all(value in values for value in found)
    ):
      raise self.fail(
        field, f'a list of {count}, each {" or ".join(map(repr, values))}'
      )
    return found

  def windowed_layers(self, types: Sequence[str], window: int | None) -> None:
    """Raises if layers of type sliding_attention have no window."""
    if window is None and 'sliding_attention' in types:
      raise self.fail(
        'layer_types',
        'no sliding_attention without a sliding_window that is in use',
        list(types),
      )

  def no_window(self) -> None:
    """Raises if a family without windows is given one.

    transformers' model does not look at it, but its cache does: what is
    generated would see other tokens than one pass over the same text.
    """
    longest = self.number('max_position_embeddings')
    window = self.optional('sliding_window', int)
    if window is not None and window < longest:
      raise self.fail(
        'sliding_window',
        f'null: {self.values.get("model_type")} attends to all tokens, and '
        'transformers cuts only its cache to the window, so that one pass and '
        'generation differ; remove it if the model was trained without',
      )
    self.per_layer('layer_types', ('full_attention',))

  # -- rotary embeddings --

  def rope(
    self, layer_type: str | None = None, default_theta: float = 10_000.0
  ) -> Rope:
    """The rotary embedding, of one type of layer where they differ.

    transformers 4 writes `rope_scaling` next to `rope_theta`; transformers 5
    writes `rope_parameters` with theta inside, in which layer types may be
    nested. An inner value goes before an outer one.
    """
    nested = self.nested_rope(layer_type, default_theta)
    scaling = self.values.get('rope_scaling')
    if nested is not None and not scaling:
      return nested
    field = 'rope_scaling' if scaling else 'rope_parameters'
    found = self.values.get(field) or {}
    if not isinstance(found, Mapping):
      raise self.fail(field, 'an object')
    if nested is not None:
      # transformers adds the one to the other.
      raise self.fail(field, f'none beside rope_parameters of {layer_type}')
    if layer_type is not None and not scaling and found:
      # transformers would not look at it.
      raise self.fail(field, f'to have {layer_type}')
    theta = self.number('rope_theta', float, default_theta)
    return self.rope_of(found, field, theta)

  def nested_rope(
    self, layer_type: str | None, default_theta: float
  ) -> Rope | None:
    """The rotary embedding given for one type of layer, if there is one."""
    found = self.values.get('rope_parameters')
    if not isinstance(found, Mapping) or layer_type not in found:
      return None
    inner = found[layer_type]
    if not isinstance(inner, Mapping):
      raise self.fail('rope_parameters', f'an object for {layer_type}')
    if not self.boolean('truncate', True, inside=inner):
      # transformers looks for it outside, where the types of layers are.
      raise self.fail('truncate', f'true for {layer_type}', False)
    return self.rope_of(inner, 'rope_parameters', default_theta)

  def rope_of(
    self,
    found: Mapping[str, Any],
    field: str,
    default_theta: float,
  ) -> Rope:
    """Checks and reads one set of rope parameters."""
    kind = found.get('rope_type', found.get('type')) or 'default'
    if kind not in rope_lib.TYPES:
      raise self.fail(
        field, f'rope_type {" or ".join(map(repr, rope_lib.TYPES))}', kind
      )
    unknown = sorted(
      key
      for key, value in found.items()
      if value is not None and key not in _ROPE_FIELDS[kind]
    )
    if unknown:
      raise errors.UserError(
        f'{self.where}: {field} has {errors.several(unknown)}, not supported '
        f'for rope_type {kind!r}'
      )

    def number(key: str, default: float | None = None) -> float:
      return self.number(key, float, default, inside=found)

    values: dict[str, Any] = {
      'type': kind,
      'theta': number('rope_theta', default_theta),
    }
    longest = self.number('max_position_embeddings')
    original = longest
    if kind in ('yarn', 'llama3', 'longrope'):
      # Phi-3 has it outside, which goes before.
      original = self.number(
        'original_max_position_embeddings',
        default=self.number(
          'original_max_position_embeddings', default=longest, inside=found
        ),
      )
    if kind != 'default':
      values['original_max_positions'] = original
    if kind in ('linear', 'dynamic', 'llama3'):
      values['factor'] = number('factor')
    if kind == 'llama3':
      values['low_freq_factor'] = number('low_freq_factor')
      values['high_freq_factor'] = number('high_freq_factor')
    if kind == 'yarn':
      factor = number('factor', longest / original)
      for key in ('mscale', 'mscale_all_dim'):
        number(key, 1.0)  # Raises unless it is missing or a number.
      values.update(
        factor=factor,
        beta_fast=number('beta_fast', 32.0),
        beta_slow=number('beta_slow', 1.0),
        truncate=self.boolean('truncate', True, inside=found),
        attention_factor=number('attention_factor', _yarn_scale(found, factor)),
      )
    if kind == 'longrope':
      factor = number('factor', longest / original)
      if original == 1:
        raise self.fail(
          'original_max_position_embeddings', 'more than 1', original
        )
      # arXiv 2402.13753, §3.
      scale = (
        math.sqrt(1 + math.log(factor) / math.log(original))
        if factor > 1
        else 1.0
      )
      values.update(
        short_factor=self.factors(found, 'short_factor'),
        long_factor=self.factors(found, 'long_factor'),
        attention_factor=number('attention_factor', scale),
      )
    return Rope(**values)

  def factors(self, found: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = found.get(key)
    count = (self.rotary_dim() or self.head_dim()) // 2
    if (
      not isinstance(value, list)
      or len(value) != count
      or not all(
        isinstance(x, (int, float))
        and not isinstance(x, bool)
        and 0 < x <= _LARGEST_FLOAT
        for x in value
      )
    ):
      raise self.fail(key, f'a list of {count} positive numbers', value)
    return tuple(map(float, value))

  def rotary_dim(self) -> int | None:
    """How many values of a head are rotated; None for all."""
    partial = self.values.get('partial_rotary_factor')
    for field in ('rope_scaling', 'rope_parameters'):
      inner = self.values.get(field)
      if isinstance(inner, Mapping) and 'partial_rotary_factor' in inner:
        partial = inner['partial_rotary_factor']
    if partial is None or partial == 1:
      return None
    if not isinstance(partial, float) or not 0 < partial < 1:
      raise self.fail('partial_rotary_factor', 'a number from 0 to 1', partial)
    return int(self.head_dim() * partial)

  def head_dim(self, default: int | None = None) -> int:
    if default is None:
      default = self.number('hidden_size') // self.number('num_attention_heads')
    return self.number('head_dim', default=default)


def _yarn_scale(found: Mapping[str, Any], factor: float) -> float:
  """YaRN's temperature (arXiv 2309.00071, eq. 22)."""

  def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  over, under = found.get('mscale'), found.get('mscale_all_dim')
  return mscale(over) / mscale(under) if over and under else mscale(1.0)
