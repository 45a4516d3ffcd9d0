"""Metadata of a GGUF file, checked as they are read."""

from typing import Any

import gguf

from vtokens.host import errors


class Metadata:
  """The metadata of a GGUF file.

  Args:
    reader: of the file.
    where: the file.

  Attributes:
    where: the file.
    architecture: what llama.cpp calls the family. It stands for `{arch}` in
      keys.

  Raises:
    errors.UserError: the file says no architecture.
  """

  def __init__(self, reader: gguf.GGUFReader, where: str):
    self._reader = reader
    self.where = where
    self.architecture = self.text('general.architecture')

  def contents(self, key: str) -> Any:
    """A value of any type; None where it is missing."""
    field = self._reader.get_field(key)
    return None if field is None else field.contents()

  def get(self, key: str, default: Any = None) -> Any:
    """A value of any type.

    Args:
      key: its name.
      default: what a missing one is; `...` for an error.

    Raises:
      errors.UserError: it is missing or damaged.
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
    """A text; the arguments are those of `get`."""
    value = self.get(key, default)
    if not isinstance(value, str):
      raise self.unexpected(key, value, 'text')
    return value

  def number(self, key: str, kind: type = int, default: Any = ...) -> Any:
    """A positive number of a type; the arguments are those of `get`."""
    value = self.get(key, default)
    # A list where layers differ, which is not supported.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise self.unexpected(key, value, f'a positive {kind.__name__}')
    return kind(value)

  def optional(self, key: str, kind: type) -> Any:
    """A number; None where it is missing or 0, which means none."""
    return None if self.get(key, 0) in (0, None) else self.number(key, kind)

  def rotary_dim(self, head_dim: int) -> int:
    """How many values of a head are rotated.

    Args:
      head_dim: width of a head.
    """
    return self.number('{arch}.rope.dimension_count', default=head_dim)

  def unexpected(self, key: str, value: Any, what: str) -> errors.UserError:
    """An error about a value."""
    return errors.UserError(
      f'{self.where}: metadata {self._name(key)} is '
      f'{errors.shorten(repr(value))}, expected {what}'
    )

  def _name(self, key: str) -> str:
    return key.format(arch=getattr(self, 'architecture', ''))
