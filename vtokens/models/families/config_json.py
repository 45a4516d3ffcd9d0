"""The fields of a `config.json`: normalised by transformers, checked here.

transformers' config class of the model type knows the older names of fields and
the values of those that are missing. It takes anything, though. Here a field
has to be read by its family, or to have no effect; others are refused.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vtokens.host import errors
from vtokens.models.decoder_config import LayerKind, Rope

FULL, SLIDING = LAYER_TYPES = ('full_attention', 'sliding_attention')

# Fields of config classes that concern training, generation or speed; those of
# the class that all others come from do so, too.
_WITHOUT_EFFECT = {
  'initializer_range',
  'use_cache',
  'attention_dropout',
  'resid_pdrop',
  'embd_pdrop',
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
}
# Nothing is sized by a number of the file before the weights' shapes confirm
# it, but lists of layers and of frequencies are.
_MOST = {
  'num_hidden_layers': 10_000,
  'hidden_size': 1 << 20,
  'head_dim': 1 << 20,
  # They size no array.
  'max_position_embeddings': 1 << 53,
  'original_max_position_embeddings': 1 << 53,
}
_MOST_ELSEWHERE = (1 << 31) - 1  # Of int32.
# Where transformers 5 has all of the rotary embedding.
_ROPE = 'rope_parameters'
# Of float32, in which the model computes.
LARGEST_FLOAT = 3.4e38


class Fields:
  """A `config.json` whose fields are checked as they are read.

  Args:
    values: the JSON object.
    where: what to call it in errors, e.g. its path.

  Attributes:
    values: the JSON object.
    where: see above.

  Raises:
    errors.UserError: the number of layers or of heads is missing or wrong.
  """

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values = values
    self.where = where
    self._read: set[str] = set()
    # Why transformers refuses a field that is given, or all of them.
    self._refused: dict[str, str] = {}
    self._whole: Any = None
    # Before lists of that length are made.
    for field in ('num_hidden_layers', 'num_attention_heads', 'hidden_size'):
      self.number(field)
    for field in ('rope_scaling', _ROPE):
      if not isinstance(values.get(field) or {}, Mapping):
        raise self.fail(field, 'an object')
    self._cls, self._defaults = _config_class(values['model_type'])
    self._whole = self._normalise()

  def _normalise(self) -> Any:
    """Transformers' config, without the given fields that it refuses."""
    # A copy: transformers changes what it is given.
    given = {
      field: copy.deepcopy(value)
      for field, value in self.values.items()
      if field in self._defaults or field not in _unused_fields()
    }
    # Forms that only older versions take.
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
        with _quiet():
          whole.__init__(**given)
        return whole
      # Newer versions check each field, and the whole at the end.
      except Exception as e:
        kind = type(e).__name__
        if getattr(whole, 'is_complete', False):
          return whole  # What matters of the whole is checked here.
        match = re.match(r"Validation error for field '(\w+)'", str(e))
        field = match[1] if match else ''
        if type(given.get(field)) is int and 'float' in str(e):
          given[field] = float(given[field])
        elif field in given:
          self._refused[field] = _expected(str(e))
          del given[field]
        elif '' not in self._refused:
          # Our checks of the fields come first: their messages are better.
          self._refused[''] = f'{kind}: {e}'
          given = {'num_hidden_layers': self.values['num_hidden_layers']}
        else:
          raise self._unreadable() from None

  def finish(self) -> None:
    """Raises if a given field matters and was not read.

    Raises:
      errors.UserError: a field of transformers' config class has another value
        than by default and the family does not read it, or transformers
        refuses a field.
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
    """A field as transformers normalises it; as given, where it refuses it."""
    self._read.add(field)
    unread = field in self._refused or (
      '' in self._refused and field in self.values and field != _ROPE
    )
    if self._whole is None or unread:
      return self.values.get(field)
    return getattr(self._whole, field, None)

  def normalised(self, *fields: str) -> None:
    """Fields that transformers has worked into others, e.g. `layer_types`."""
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
      field: its name.
      kind: int or float.
      default: what a missing or null one is.
      inside: an object to read it from.
    """
    value = self.get(field) if inside is None else inside.get(field)
    value = default if value is None else value
    # bool is an int to Python, and 1 is a valid float.
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
    """A positive number that has no default."""
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
    """`attention_bias`, which is of all four projections."""
    bias = self.boolean('attention_bias')
    return {'qkv_bias': bias, 'out_bias': bias}

  # -- layers --

  def per_layer(self, field: str, values: Sequence[Any]) -> list[Any] | None:
    """One of the values for each layer; None where the field is missing."""
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
    """`layer_types`, where layers with a window need one.

    Args:
      window: what a query of these layers sees, in tokens.
    """
    types = self.per_layer('layer_types', LAYER_TYPES) or []
    if window is None and SLIDING in types:
      raise self.fail(
        'layer_types',
        'no sliding_attention without a sliding_window that is in use',
        list(types),
      )
    return types

  def pattern(
    self, full: Rope, sliding: Rope | None = None
  ) -> tuple[LayerKind, ...]:
    """Layers of two types, one of which sees a window.

    Args:
      full: rotary embedding of layers that see everything.
      sliding: of those with a window; None for the same.
    """
    window = self.optional('sliding_window', int)
    kinds = {
      FULL: LayerKind(full),
      SLIDING: LayerKind(sliding or full, window),
    }
    return shortest_pattern([kinds[t] for t in self.layer_types(window)])

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
    self.per_layer('layer_types', (FULL,))

  def head_dim(self) -> int:
    """Width of a head; by default the hidden size is divided by the heads."""
    heads = self.number('num_attention_heads')
    return self.number('head_dim', default=self.number('hidden_size') // heads)

  def rotary_dim(self) -> int | None:
    """How many values of a head are rotated; None for all."""
    self._read.add('partial_rotary_factor')
    partial = self.values.get('partial_rotary_factor')
    for field in ('rope_scaling', 'rope_parameters'):
      inner = self.values.get(field) or {}
      partial = inner.get('partial_rotary_factor', partial)
    if partial is None or partial == 1:
      return None
    if not isinstance(partial, float) or not 0 < partial < 1:
      raise self.fail('partial_rotary_factor', 'a number from 0 to 1', partial)
    return int(self.head_dim() * partial)


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest pattern that repeats to this list."""
  for size in range(1, len(kinds)):
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds)):
      return tuple(kinds[:size])
  return tuple(kinds)


@functools.cache
def _config_class(model_type: str) -> tuple[Any, dict[str, Any]]:
  """Transformers' config class, and the defaults of its fields that matter."""
  cls: Any = _transformers().CONFIG_MAPPING[model_type]
  unused = _unused_fields()
  found = _defaults(cls).items()

  class Unchecked(cls):
    """Says whether all fields are set when a check of the whole fails."""

    def __post_init__(self, **kwargs: Any) -> None:
      super().__post_init__(**kwargs)
      self.is_complete = True

    def validate_rope(self, *unused: Any, **unused_too: Any) -> None:
      """Transformers 5.3 calls it before all fields are set."""

  known = {field: value for field, value in found if field not in unused}
  return Unchecked, known


@functools.cache
def _unused_fields() -> frozenset[str]:
  """Fields that do not concern the numbers of the model."""
  common = _defaults(_transformers().PreTrainedConfig)
  return frozenset({'model_type', *common, *_WITHOUT_EFFECT})


def _transformers() -> Any:
  # Where needed: it takes a second, and brings torch where that is installed.
  return importlib.import_module('transformers')


def _defaults(cls: type) -> dict[str, Any]:
  """The fields of a config class and their defaults."""
  if dataclasses.is_dataclass(cls):
    return {field.name: field.default for field in dataclasses.fields(cls)}
  # transformers 5.3
  found = inspect.signature(cls).parameters.values()
  return {p.name: p.default for p in found if p.kind is not p.VAR_KEYWORD}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without warnings of transformers: what they warn of is checked here."""
  logging = _transformers().logging
  before = logging.get_verbosity()
  logging.set_verbosity_error()
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _expected(message: str) -> str:
  """What a field should be, from the message of a failed check."""
  types = re.findall(r'expected (?:an? )?([\w\[\]., |]+?), got', message)
  return ' or '.join(types).replace('NoneType', 'null') or message
