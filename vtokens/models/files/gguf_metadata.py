"""Metadata of a GGUF file, checked when read."""

from typing import Any

import gguf

from vtokens.host import errors


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
    self.where = where
    self.architecture = self.text('general.architecture')

  def contents(self, key: str) -> Any:
    """A value of any type; None if it is missing."""
    field = self._reader.get_field(key)
    return None if field is None else field.contents()

  def get(self, key: str, default: Any = None) -> Any:
    """A value of any type.

    Args:
      key: name of the value.
      default: returned if the value is missing; `...` raises instead.

    Raises:
      errors.UserError: the value is missing or damaged.
    """
    key = self._name(key)
    field = self._reader.get_field(key)
    if field is None:
      if default is ...:
        raise errors.UserError(f'{self.where}: metadata {key} is missing')
      return default
    try:
      return field.contents()
    except UnicodeDecodeError as e:
      raise errors.UserError(
        f'{self.where}: metadata {key} is no text ({e}): the file is damaged'
      ) from None

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

  def rotary_dim(self, head_dim: int) -> int:
    """Number of values of a head that are rotated.

    Args:
      head_dim: width of a head.
    """
    dim: int = self.number('{arch}.rope.dimension_count', default=head_dim)
    return dim

  def unexpected(self, key: str, value: Any, what: str) -> errors.UserError:
    """An error about a value."""
    return errors.UserError(
      f'{self.where}: metadata {self._name(key)} is '
      f'{errors.shorten(repr(value))}, expected {what}'
    )

  def _name(self, key: str) -> str:
    return key.format(arch=getattr(self, 'architecture', ''))
