"""The fields of a `config.json`: normalised by transformers, checked here.

transformers' config class of the model type knows older names of fields and
default values, but it accepts any field. Here a field is refused unless its
family reads it or it has no effect.
"""

import contextlib
import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.host import errors
from vtokens.models.decoder_config import LayerKind, Rope
from vtokens.models.families import config_classes

FULL, SLIDING = LAYER_TYPES = ('full_attention', 'sliding_attention')

# Names of GELU by tanh.
_GELU_TANH = ('gelu_new', 'gelu_fast', 'gelu_pytorch_tanh')
# Lists of layers and of frequencies are made before the shapes of the weights
# confirm their lengths, so these numbers need a bound.
_MOST = {
  'num_hidden_layers': 10_000,
  'hidden_size': 1 << 20,
  'head_dim': 1 << 20,
  # No array has this size.
  'max_position_embeddings': 1 << 53,
  'original_max_position_embeddings': 1 << 53,
}
_MOST_ELSEWHERE = (1 << 31) - 1  # Of int32.
# transformers 5 has all settings of the rotary embedding in this field.
_ROPE = 'rope_parameters'
# Largest float32; the model computes in float32.
LARGEST_FLOAT = 3.4e38


class Fields:
  """A `config.json` whose fields are checked as they are read.

  Args:
    values: the JSON object.
    where: name of the file for errors, e.g. its path.

  Attributes:
    values: the JSON object.
    where: see above.

  Raises:
    errors.UserError: the number of layers or of heads is missing or wrong.
  """

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values = {key: _decoded(value) for key, value in values.items()}
    self.where = where
    self._read: set[str] = set()
    # Field -> why transformers refuses it; '' for the config as a whole.
    self._refused: dict[str, str] = {}
    self._whole: Any = None
    # Before lists of that length are made.
    for field in ('num_hidden_layers', 'num_attention_heads', 'hidden_size'):
      self.number(field)
    for field in ('rope_scaling', _ROPE):
      if not isinstance(values.get(field), Mapping | None):
        raise self.fail(field, 'an object')
    self._cls, self._defaults = config_classes.of_type(values['model_type'])
    self._whole = self._normalise()

  def _normalise(self) -> Any:
    """Transformers' config, without the given fields that it refuses."""
    # A copy, because transformers changes its arguments.
    given = {
      field: copy.deepcopy(value)
      for field, value in self.values.items()
      if field in self._defaults or field not in config_classes.unused_fields()
    }
    # Only older versions accept these forms.
    if given.get('num_key_value_heads', 0) is None:
      given['num_key_value_heads'] = given['num_attention_heads']
    if given.get('head_dim', 0) is None:
      del given['head_dim']
    for field in ('rope_scaling', _ROPE):
      rope = given.get(field) or {}
      if 'type' in rope:
        rope.setdefault('rope_type', rope['type'])
    while True:
      whole = self._cls.__new__(self._cls)
      try:
        with config_classes.quiet():
          whole.__init__(**given)
        return whole
      # Newer versions check each field, and the whole at the end.
      except Exception as e:
        kind = type(e).__name__
        if getattr(whole, 'is_complete', False):
          return whole  # The checks that matter are made here.
        match = re.match(r"Validation error for field '(\w+)'", str(e))
        field = match[1] if match else ''
        if type(given.get(field)) is int and 'float' in str(e):
          given[field] = float(given[field])
        elif field in given:
          self._refused[field] = config_classes.expected(str(e))
          del given[field]
        elif '' not in self._refused:
          # The checks of fields here come first: their messages are better.
          self._refused[''] = f'{kind}: {e}'
          given = {'num_hidden_layers': self.values['num_hidden_layers']}
        else:
          raise self._unreadable() from None

  def finish(self) -> None:
    """Raises if a given field matters and was not read.

    Raises:
      errors.UserError: the family does not read a field that differs from its
        default in transformers' config class, or transformers refuses a field.
    """
    for field, why in self._refused.items():
      raise self.fail(field, why) if field else self._unreadable()
    for field, default in self._defaults.items():
      given = self.values.get(field, default)
      if field not in self._read and given != default:
        raise self.fail(field, f'{default!r} (others: not supported)')

  def _unreadable(self) -> errors.UserError:
    why = errors.shorten(self._refused[''])
    return errors.UserError(f'{self.where}: transformers cannot read it: {why}')

  def fail(
    self, field: str, expected: str, found: Any = ...
  ) -> errors.UserError:
    """An error about a field."""
    found = self.values.get(field) if found is ... else found
    found = 'missing' if found is None else errors.shorten(repr(found))
    return errors.UserError(
      f'{self.where}: {field} is {found}, expected {expected}'
    )

  # -- values --

  def get(self, field: str) -> Any:
    """A field as transformers normalises it, or as given if it refuses it."""
    self._read.add(field)
    unread = field in self._refused or (
      '' in self._refused and field in self.values and field != _ROPE
    )
    if self._whole is None or unread:
      return self.values.get(field)
    # It warns where layers differ in a field.
    with config_classes.quiet():
      return getattr(self._whole, field, None)

  def normalised(self, *fields: str) -> None:
    """Marks fields that transformers merges into others, e.g. `layer_types`."""
    self._read.update(fields)

  def number(
    self,
    field: str,
    kind: type = int,
    default: Any = None,
    inside: Mapping[str, Any] | None = None,
  ) -> Any:
    """A positive number.

    Args:
      field: name of the field.
      kind: int or float.
      default: value if the field is missing or null.
      inside: object to read the field from; None for the whole config.
    """
    value = self.get(field) if inside is None else inside.get(field)
    value = default if value is None else value
    # In Python bool is an int. The int 1 is a valid float.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise self.fail(field, f'a positive {kind.__name__}', value)
    most: float = LARGEST_FLOAT
    if kind is int:
      most = _MOST.get(field, _MOST_ELSEWHERE)
    if value > most:
      raise self.fail(
        field, f'a positive {kind.__name__} of at most {most}', value
      )
    return kind(value)

  def size(self, field: str, kind: type = int) -> Any:
    """A positive number without a default."""
    self._read.add(field)
    return self.number(field, kind, inside=self.values)

  def optional(self, field: str, kind: type) -> Any:
    """A positive number or None."""
    return None if self.get(field) is None else self.number(field, kind)

  def boolean(
    self,
    field: str,
    default: bool = False,
    inside: Mapping[str, Any] | None = None,
  ) -> bool:
    """A boolean; see `number` for the arguments."""
    value = self.get(field) if inside is None else inside.get(field)
    value = default if value is None else value
    if not isinstance(value, bool):
      raise self.fail(field, 'true or false', value)
    return value

  def only(self, field: str, *supported: Any) -> None:
    """Raises unless a field is missing or has one of these values."""
    self._read.add(field)
    value = self.values.get(field, supported[0])
    if value not in supported:
      raise self.fail(
        field, f'{" or ".join(map(repr, supported))} (others: not supported)'
      )

  def biases(self) -> dict[str, bool]:
    """`attention_bias`, which applies to all four projections."""
    bias = self.boolean('attention_bias')
    return {'qkv_bias': bias, 'out_bias': bias}

  # -- layers --

  def per_layer(self, field: str, values: Sequence[Any]) -> list[Any] | None:
    """For each layer one of `values`; None if the field is missing."""
    found = self.get(field)
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

  def layer_types(self, window: int | None) -> list[str]:
    """`layer_types`. Raises if a layer has a window but `window` is None.

    A config class without this field has no windows.

    Args:
      window: tokens that a query of these layers sees.
    """
    types = self.per_layer('layer_types', LAYER_TYPES)
    if types is None:
      self.no_window()
      return [FULL] * self.number('num_hidden_layers')
    if window is None and SLIDING in types:
      raise self.fail(
        'layer_types',
        'no sliding_attention without a sliding_window that is in use',
        list(types),
      )
    return types

  def pattern(
    self, full: Rope | None, sliding: Rope | None = None
  ) -> tuple[LayerKind, ...]:
    """Pattern of layers with and without a window.

    Args:
      full: rotary embedding of layers without a window; None for none.
      sliding: rotary embedding of layers with a window; None for `full`.
    """
    window = self.optional('sliding_window', int)
    kinds = {
      FULL: LayerKind(full),
      SLIDING: LayerKind(sliding or full, window),
    }
    return shortest_pattern([kinds[t] for t in self.layer_types(window)])

  def full_pattern(self, rope: Rope | None) -> tuple[LayerKind, ...]:
    """Pattern of layers without windows. Raises if a layer has one."""
    self.layer_types(None)
    return (LayerKind(rope),)

  def no_window(self) -> None:
    """Raises if the config of a family without windows sets one.

    transformers' model ignores the window, but its cache does not: generated
    tokens would see other tokens than in one pass over the same text.
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
    self.per_layer('layer_types', (FULL,))

  def gelu(self, field: str) -> str:
    """The activation of a family with GELU, exact or by tanh."""
    self.only(field, 'gelu', *_GELU_TANH)
    return 'gelu' if self.get(field) == 'gelu' else 'gelu_tanh'

  def head_dim(self) -> int:
    """Width of a head; by default the hidden size over the number of heads."""
    heads = self.number('num_attention_heads')
    width: int = self.number(
      'head_dim', default=self.number('hidden_size') // heads
    )
    return width

  def rotary_dim(self) -> int | None:
    """Number of values of a head that are rotated; None for all."""
    self._read.add('partial_rotary_factor')
    partial = self.values.get('partial_rotary_factor')
    for field in ('rope_scaling', 'rope_parameters'):
      inner = self.values.get(field) or {}
      partial = inner.get('partial_rotary_factor', partial)
    if partial is None:
      # Some classes have a default that is no field.
      inner = getattr(self._whole, _ROPE, None) or {}
      partial = inner.get('partial_rotary_factor')
    if partial is None or partial == 1:
      return None
    if not isinstance(partial, float) or not 0 < partial < 1:
      raise self.fail('partial_rotary_factor', 'a number from 0 to 1', partial)
    return int(self.head_dim() * partial)


def _decoded(value: Any) -> Any:
  """A value with floats where transformers writes infinities as objects."""
  if isinstance(value, list):
    return [_decoded(part) for part in value]
  if isinstance(value, Mapping) and list(value) == ['__float__']:
    with contextlib.suppress(TypeError, ValueError):
      return float(value['__float__'])
  return value


def write_gelu(activation: str, tanh: str) -> str:
  """The name of GELU in config.json; see `Fields.gelu`.

  Args:
    activation: see `layers.ACTIVATIONS`.
    tanh: the family's name of GELU by tanh.
  """
  return 'gelu' if activation == 'gelu' else tanh


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest pattern that repeats to this list."""
  for size in range(1, len(kinds)):
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds)):
      return tuple(kinds[:size])
  return tuple(kinds)
