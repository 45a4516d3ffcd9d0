"""Fields of `quantization_config`, each of which is used or refused."""

import re
from collections.abc import Mapping
from typing import Any

from vtokens.host import errors


class Settings:
  """The fields of an object in `quantization_config`.

  Args:
    values: the parsed JSON object.
    where: file and field, for messages.
  """

  def __init__(self, values: Any, where: str):
    self.where = where
    if not isinstance(values, Mapping):
      raise errors.UserError(
        f'{where} is {errors.shorten(repr(values))}, expected an object'
      )
    self._left = dict(values)

  def take(self, name: str, default: Any = None) -> Any:
    """A value of any type; `default` if it is missing or null."""
    value = self._left.pop(name, None)
    return default if value is None else value

  def one_of(self, name: str, allowed: tuple[Any, ...], default: Any) -> Any:
    """One of the values that are supported.

    Raises:
      errors.UserError: the value is another one.
    """
    value = self.take(name, default)
    # In Python 1 is True.
    if not any(value == a and type(value) is type(a) for a in allowed):
      raise self.fail(
        name, value, f'supported: {", ".join(map(repr, allowed))}'
      )
    return value

  def absent(self, *names: str) -> None:
    """Raises if a field has a value other than null, false or empty.

    Raises:
      errors.UserError: one has.
    """
    for name in names:
      value = self.take(name)
      if value not in (None, False, {}, [], ''):
        raise self.fail(name, value, 'nothing of this kind is supported')

  def ignore(self, *names: str) -> None:
    """Fields that do not change the weights' values."""
    for name in names:
      self._left.pop(name, None)

  def size(self, name: str, default: int) -> int:
    """A positive integer, or -1.

    Raises:
      errors.UserError: it is something else.
    """
    value = self.take(name, default)
    if type(value) is not int or (value < 1 and value != -1):
      raise self.fail(name, value, 'expected a positive integer or -1')
    return int(value)

  def texts(self, name: str) -> tuple[str, ...]:
    """A list of names, or of `re:` and an expression; empty if it is missing.

    Raises:
      errors.UserError: it is something else, or an expression is wrong.
    """
    value = self.take(name, [])
    if not isinstance(value, list) or not all(
      isinstance(one, str) for one in value
    ):
      raise self.fail(name, value, 'expected a list of texts')
    for text in value:
      if text.startswith('re:'):
        try:
          re.compile(text.removeprefix('re:'))
        except re.error as e:
          raise self.fail(name, text, f'no regular expression ({e})') from None
    return tuple(value)

  def inner(self, name: str, value: Any) -> 'Settings':
    """The fields of an object inside this one."""
    return Settings(value, f'{self.where}.{name}')

  def finish(self) -> None:
    """Raises if a field was not used.

    Raises:
      errors.UserError: one was not.
    """
    for name, value in self._left.items():
      if value not in (None, {}, []):
        raise self.fail(name, value, 'no such field is known')

  def fail(self, name: str, value: Any, what: str) -> errors.UserError:
    """An error about a field."""
    return errors.UserError(
      f'{self.where}.{name} is {errors.shorten(repr(value))}, not supported; '
      f'{what}'
    )
