"""Metadata of a GGUF file, checked when read."""

import math
from typing import Any

import gguf

from vtokens.host import errors
from vtokens.models.families.config_json import FULL, SLIDING

# Keys of an architecture that change no number. Keys of scaling are checked
# where there is scaling; of the two epsilons a family has one.
_WITHOUT_EFFECT = {
  'vocab_size',
  'tensor_data_layout',
  'pooling_type',
  'classifier.output_labels',
  'n_deepstack_layers',  # Of images.
  'attention.layer_norm_epsilon',
  'attention.layer_norm_rms_epsilon',
  'rope.scaling.original_context_length',
  'rope.scaling.finetuned',
  'rope.scaling.yarn_log_multiplier',
  'rope.scaling.yarn_ext_factor',
  'rope.scaling.yarn_attn_factor',
  'rope.scaling.yarn_beta_fast',
  'rope.scaling.yarn_beta_slow',
}
# Their sections of rotary frequencies have equal positions for text.
_MULTIMODAL = {
  *('qwen2vl', 'qwen3vl', 'qwen3vlmoe', 'glm4', 'qwen35', 'qwen35moe'),
}
# Beginnings of keys of parts that are not for text.
_OTHER_PARTS = ('vision.', 'audio.', 'mm.')
# Values without effect of other keys.
_NEUTRAL = {
  'attention.causal': True,
  'attention.clamp_kqv': 0,
  'attention.max_alibi_bias': 0,
  'expert_count': 0,
  'expert_used_count': 0,
  'nextn_predict_layers': 0,
  'rope.scaling.attn_factor': 1,
}


class Metadata:
  """The metadata of a GGUF file.

  Args:
    reader: reader of the file.
    where: path of the file.

  Attributes:
    where: path of the file.
    architecture: llama.cpp's name of the family. It replaces `{arch}` in keys.

  Raises:
    errors.UserError: the file names no architecture.
  """

  def __init__(self, reader: gguf.GGUFReader, where: str):
    self._reader = reader
    self._read: set[str] = set()
    self._tensors = {tensor.name for tensor in reader.tensors}
    self.where = where
    self.architecture = self.text('general.architecture')

  def contents(self, key: str) -> Any:
    """A value of any type; None if it is missing.

    Raises:
      errors.UserError: the value is damaged.
    """
    field = self._reader.get_field(key)
    try:
      return None if field is None else field.contents()
    except UnicodeDecodeError as e:
      raise errors.UserError(
        f'{self.where}: metadata {key} is no text ({e}): the file is damaged'
      ) from None

  def get(self, key: str, default: Any = None) -> Any:
    """A value of any type.

    Args:
      key: name of the value.
      default: returned if the value is missing; `...` raises instead.

    Raises:
      errors.UserError: the value is missing or damaged.
    """
    key = self._name(key)
    self._read.add(key)
    value = self.contents(key)
    if value is None and default is ...:
      raise errors.UserError(f'{self.where}: metadata {key} is missing')
    return default if value is None else value

  def text(self, key: str, default: Any = ...) -> str:
    """A text; see `get` for the arguments."""
    value = self.get(key, default)
    if not isinstance(value, str):
      raise self.unexpected(key, value, 'text')
    return value

  def number(self, key: str, kind: type = int, default: Any = ...) -> Any:
    """A positive number of a type; see `get` for the arguments."""
    value = self.get(key, default)
    # A list means that layers differ, which is not supported.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise self.unexpected(key, value, f'a positive {kind.__name__}')
    return kind(value)

  def optional(self, key: str, kind: type) -> Any:
    """A number; None if it is missing or 0."""
    return None if self.get(key, 0) in (0, None) else self.number(key, kind)

  def numbers(self, key: str, count: int) -> list[float]:
    """A list of numbers, or one number for all.

    Args:
      key: name of the value.
      count: length of the list.

    Raises:
      errors.UserError: the value is missing or wrong.
    """
    value = self.get(key, ...)
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count or not all(
      isinstance(one, float) and math.isfinite(one) for one in values
    ):
      raise self.unexpected(key, value, f'{count} numbers')
    return values

  def per_layer(self, key: str, layers: int, default: Any = ...) -> list[int]:
    """A number for each layer, 0 or more.

    Args:
      key: name of the value: a list, or one number for all layers.
      layers: number of layers. A longer list has further layers, which are not
        used.
      default: see `get`.

    Raises:
      errors.UserError: the value is missing or wrong.
    """
    value = self.get(key, default)
    values = value if isinstance(value, list) else [value] * layers
    if len(values) < layers or not all(
      type(one) is int and one >= 0 for one in values
    ):
      raise self.unexpected(key, value, f'numbers of {layers} layers')
    return values[:layers]

  def heads_of_layers(self, values: dict[str, Any]) -> list[bool]:
    """Whether each layer has attention; others have no heads of keys.

    Args:
      values: fields of config.json.

    Raises:
      errors.UserError: layers have different numbers of heads.
    """
    key = '{arch}.attention.head_count_kv'
    heads = values['num_key_value_heads']
    found = self.per_layer(key, values['num_hidden_layers'])
    if not set(found) <= {0, heads}:
      raise self.unexpected(key, found, f'{heads}, or 0 without attention')
    return [one > 0 for one in found]

  def flags(self, key: str, layers: int) -> list[bool] | None:
    """True or false for each layer; None if the value is no list.

    Args:
      key: name of the value.
      layers: see `per_layer`.

    Raises:
      errors.UserError: the list is wrong.
    """
    found = self.get(key)
    if not isinstance(found, list):
      return None
    if len(found) < layers or not all(isinstance(x, bool) for x in found):
      raise self.unexpected(key, found, f'true or false for {layers} layers')
    return found[:layers]

  def rotary_dim(self, head_dim: int) -> int:
    """Number of values of a head that are rotated.

    Args:
      head_dim: width of a head.
    """
    dim: int = self.number('{arch}.rope.dimension_count', default=head_dim)
    return dim

  def has_tensor(self, name: str) -> bool:
    """Whether the file has a tensor of this name."""
    return name in self._tensors

  def state_heads(self) -> tuple[int, int]:
    """Number and width of the heads of recurrent layers.

    Raises:
      errors.UserError: a value is missing, or the layers' width is no multiple
        of the number.
    """
    heads = self.number('{arch}.ssm.time_step_rank')
    inner = self.number('{arch}.ssm.inner_size')
    if inner % heads:
      raise self.unexpected(
        '{arch}.ssm.inner_size', inner, f'a multiple of {heads} heads'
      )
    return heads, inner // heads

  def partial_rotation(self, values: dict[str, Any]) -> None:
    """Sets `partial_rotary_factor`.

    Args:
      values: fields of config.json, to be changed in place.
    """
    rotated, width = self.rotary_dim(values['head_dim']), values['head_dim']
    factor = rotated / width
    # Readers of the field round down.
    values['partial_rotary_factor'] = (
      factor if int(width * factor) == rotated else (rotated + 0.5) / width
    )

  def layer_types(self, values: dict[str, Any], period: int) -> None:
    """Sets `layer_types`, from the file's pattern of layers with a window.

    Args:
      values: fields of config.json, to be changed in place.
      period: without a pattern, the last of so many layers has no window.

    Raises:
      errors.UserError: the pattern is wrong.
    """
    key = '{arch}.attention.sliding_window_pattern'
    count = values['num_hidden_layers']
    windows = self.flags(key, count)
    if windows is None:
      period = self.number(key, default=period)
      windows = [(i + 1) % period != 0 for i in range(count)]
    values['layer_types'] = [SLIDING if one else FULL for one in windows]

  def same_theta(self, values: dict[str, Any]) -> None:
    """Raises if layers with a window have another base of frequencies.

    llama.cpp does not use it in these architectures.

    Args:
      values: fields of config.json.
    """
    theta = values['rope_theta']
    local = self.number('{arch}.rope.freq_base_swa', float, theta)
    if local != theta:
      raise self.unexpected('{arch}.rope.freq_base_swa', local, repr(theta))

  def finish(self) -> None:
    """Raises if a value of the architecture was not read.

    Raises:
      errors.UserError: the value may change the numbers of the model.
    """
    prefix = self.architecture + '.'
    for key in self._reader.fields:
      if key in self._read or not key.startswith(prefix):
        continue
      name = key.removeprefix(prefix)
      if name in _WITHOUT_EFFECT:
        continue
      if name == 'rope.dimension_sections' and self.architecture in _MULTIMODAL:
        continue
      if name.startswith(_OTHER_PARTS):
        raise errors.UserError(
          f'{self.where}: metadata {key} is of a part for images or sound, '
          "which Ollama's files have beside the text model; expected a file of "
          "the text model alone, as llama.cpp's converter writes it"
        )
      found = self.contents(key)
      if name not in _NEUTRAL or found != _NEUTRAL[name]:
        wanted = repr(_NEUTRAL[name]) if name in _NEUTRAL else 'none'
        raise errors.UserError(
          f'{self.where}: metadata {key} is {errors.shorten(repr(found))}, '
          f'not supported for {self.architecture}; expected {wanted}'
        )

  def unexpected(self, key: str, value: Any, what: str) -> errors.UserError:
    """An error about a value."""
    return errors.UserError(
      f'{self.where}: metadata {self._name(key)} is '
      f'{errors.shorten(repr(value))}, expected {what}'
    )

  def _name(self, key: str) -> str:
    return key.format(arch=getattr(self, 'architecture', ''))
