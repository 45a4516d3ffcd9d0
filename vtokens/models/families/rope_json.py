"""Rotary embeddings in a `config.json`."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vtokens.host import errors
from vtokens.models import rope as rope_lib
from vtokens.models.decoder_config import Rope
from vtokens.models.families.config_json import (
  FULL,
  LARGEST_FLOAT,
  LAYER_TYPES,
  Fields,
)

# Supported fields of each type of scaling.
_COMMON = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
_STRETCHED = _COMMON | {'factor', 'original_max_position_embeddings'}
_FIELDS = {
  # transformers writes the length for Phi-3 even without scaling.
  'default': _COMMON | {'original_max_position_embeddings'},
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
  'proportional': _COMMON | {'factor'},
}
# Types of any family.
_TYPES = tuple(kind for kind in rope_lib.TYPES if kind != 'proportional')


def read(f: Fields, also: Collection[str] = ()) -> Rope:
  """The rotary embedding of a family with one embedding for all layers.

  transformers converts the older `rope_scaling` and `rope_theta` to
  `rope_parameters`.

  Args:
    f: the fields.
    also: further keys that the family reads itself.

  Raises:
    errors.UserError: a field is wrong or not supported.
  """
  field = 'rope_scaling' if f.values.get('rope_scaling') else 'rope_parameters'
  found = f.get('rope_parameters')
  if found is not None:
    found = {key: value for key, value in found.items() if key not in also}
  return _read(f, found, field)


def read_of_type(
  f: Fields, layer_type: str, theta: float, *, proportional: bool = False
) -> Rope:
  """The rotary embedding of one type of layer, if types differ.

  It is read as given, because versions of transformers normalise it
  differently. Fields outside of `rope_parameters` apply to layers without a
  window.

  Args:
    f: the fields.
    layer_type: type as in `layer_types`.
    theta: default of theta.
    proportional: whether the family has the type of this name.

  Raises:
    errors.UserError: a field is wrong, not supported, or would be ignored.
  """
  f.normalised('rope_parameters')
  given = f.values.get('rope_parameters') or {}
  scaling = f.values.get('rope_scaling') or {}
  found = given.get(layer_type)
  if found is not None and not isinstance(found, Mapping):
    raise f.fail('rope_parameters', f'an object for {layer_type}')
  if scaling and found:
    # transformers merges the two.
    raise f.fail('rope_scaling', f'none beside rope_parameters of {layer_type}')
  if not found and set(given) - set(LAYER_TYPES):
    # transformers would ignore it.
    raise f.fail('rope_parameters', f'to have {layer_type}')
  if found and not f.boolean('truncate', True, inside=found):
    # transformers looks for it in `rope_parameters` itself, not in the entry of
    # the layer type.
    raise f.fail('truncate', f'true for {layer_type}', False)
  if not found and layer_type == FULL:
    theta = f.number('rope_theta', float, theta, inside=f.values)
    found = scaling
  field = 'rope_scaling' if scaling else 'rope_parameters'
  types = rope_lib.TYPES if proportional else _TYPES
  return _read(f, found or {}, field, theta, types)


def _read(
  f: Fields,
  found: Mapping[str, Any],
  field: str,
  theta: float | None = None,
  types: Sequence[str] = _TYPES,
) -> Rope:
  """Checks and reads one set of parameters."""
  kind = found.get('rope_type', found.get('type')) or 'default'
  if kind not in types:
    raise f.fail(field, f'rope_type {" or ".join(map(repr, types))}', kind)
  unknown = sorted(
    key
    for key, value in found.items()
    if value is not None and key not in _FIELDS[kind]
  )
  if unknown:
    raise errors.UserError(
      f'{f.where}: {field} has {errors.several(unknown)}, not supported '
      f'for rope_type {kind!r}'
    )

  def number(key: str, default: float | None = None) -> float:
    value: float = f.number(key, float, default, inside=found)
    return value

  longest = f.number('max_position_embeddings')
  original = longest
  if kind in ('yarn', 'llama3', 'longrope'):
    # Phi-3 has it outside, which takes precedence.
    key = 'original_max_position_embeddings'
    original = f.number(key, default=f.number(key, int, longest, inside=found))
  values: dict[str, Any] = {'type': kind, 'theta': number('rope_theta', theta)}
  if kind not in ('default', 'proportional'):
    values['original_max_positions'] = original
  if kind in ('linear', 'dynamic', 'llama3'):
    values['factor'] = number('factor')
  if kind == 'proportional':
    share = number('partial_rotary_factor', 1.0)
    if share > 1:
      raise f.fail('partial_rotary_factor', 'a number from 0 to 1', share)
    values.update(factor=number('factor', 1.0), share=share)
  if kind == 'llama3':
    values['low_freq_factor'] = number('low_freq_factor')
    values['high_freq_factor'] = number('high_freq_factor')
  if kind == 'yarn':
    factor = number('factor', longest / original)
    for key in ('mscale', 'mscale_all_dim'):
      number(key, 1.0)  # Raises if it is not a number.
    values.update(
      factor=factor,
      beta_fast=number('beta_fast', 32.0),
      beta_slow=number('beta_slow', 1.0),
      truncate=f.boolean('truncate', True, inside=found),
      attention_factor=number('attention_factor', _yarn_scale(found, factor)),
    )
  if kind == 'longrope':
    factor = number('factor', longest / original)
    if original == 1:
      raise f.fail('original_max_position_embeddings', 'more than 1', original)
    # arXiv 2402.13753, section 3.
    scale = (
      math.sqrt(1 + math.log(factor) / math.log(original))
      if factor > 1
      else 1.0
    )
    values.update(
      short_factor=_factors(f, found, 'short_factor'),
      long_factor=_factors(f, found, 'long_factor'),
      attention_factor=number('attention_factor', scale),
    )
  return Rope(**values)


def _factors(
  f: Fields, found: Mapping[str, Any], key: str
) -> tuple[float, ...]:
  """One factor for each frequency."""
  value = found.get(key)
  count = (f.rotary_dim() or f.head_dim()) // 2
  if (
    not isinstance(value, list)
    or len(value) != count
    or not all(
      isinstance(x, (int, float))
      and not isinstance(x, bool)
      and 0 < x <= LARGEST_FLOAT
      for x in value
    )
  ):
    raise f.fail(key, f'a list of {count} positive numbers', value)
  return tuple(map(float, value))


def _yarn_scale(found: Mapping[str, Any], factor: float) -> float:
  """YaRN's temperature (arXiv 2309.00071, eq. 22)."""
  over, under = found.get('mscale'), found.get('mscale_all_dim')
  if over and under:
    return yarn_mscale(factor, over) / yarn_mscale(factor, under)
  return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, weight: float) -> float:
  """YaRN's scale for a factor: a weighted logarithm, 1 without stretching."""
  return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_parameters(rope: Rope) -> dict[str, Any]:
  """`rope_parameters`, as in transformers 5."""
  scaling = write_scaling(rope) or {'rope_type': 'default'}
  return {**scaling, 'rope_theta': rope.theta}


def write_scaling(rope: Rope) -> dict[str, Any] | None:
  """`rope_scaling`, next to `rope_theta`, as in transformers 4."""
  if rope.type == 'default':
    return None
  values: dict[str, Any] = {'rope_type': rope.type}
  if rope.type != 'longrope':
    values['factor'] = rope.factor
  if rope.type == 'proportional':
    values['partial_rotary_factor'] = rope.share
  if rope.type in ('yarn', 'llama3', 'longrope'):
    values['original_max_position_embeddings'] = rope.original_max_positions
  if rope.type == 'llama3':
    values['low_freq_factor'] = rope.low_freq_factor
    values['high_freq_factor'] = rope.high_freq_factor
  if rope.type == 'yarn':
    values['beta_fast'] = rope.beta_fast
    values['beta_slow'] = rope.beta_slow
    values['truncate'] = rope.truncate
  if rope.type == 'longrope':
    values['short_factor'] = list(rope.short_factor)
    values['long_factor'] = list(rope.long_factor)
  if rope.type in ('yarn', 'longrope'):
    values['attention_factor'] = rope.attention_factor
  return values
