"""Settings as nested dataclasses: checks and JSON.

A field is a bool, int, float, str, one of a few words (`Literal`), a tuple of
these, another dataclass (a section), or a dict from names to any of these. Its
type says what it may hold (see `field_types`).

Sections are plain dataclasses, so that a config file can fill them in any
order; pydantic checks them once, in `check`.
"""

import dataclasses
import difflib
import functools
import json
import operator
import typing
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import pydantic

from vtokens.host import errors
from vtokens.settings import field_types

_T = TypeVar('_T')


class FieldError(errors.UserError):
  """A field's value is not what was expected.

  Attributes:
    field: as in the message, e.g. config.data.batch_size.
  """

  def __init__(self, field: str, problem: str):
    super().__init__(f'{field}: {problem}')
    self.field = field


class Section:
  """Base class of all settings: says how pydantic checks them.

  Strict: True is no int, a list is no tuple. A section is checked again in
  every `check`, since its fields may have been set meanwhile.
  """

  __pydantic_config__ = pydantic.ConfigDict(
    strict=True, revalidate_instances='always', allow_inf_nan=False
  )


def check(settings: Section) -> None:
  """Checks each field by its type; replaces `~` in paths by the home directory.

  Args:
    settings: changed in place, so that all that follows, records included, has
      one name for one place.

  Raises:
    FieldError: a value is not what the field's type says, or there is an
      attribute that is no field.
  """
  cls: Any = type(settings)
  try:
    checked = _adapter(cls).validate_python(settings)
  except pydantic.ValidationError as e:
    _refuse_first(settings, e)
  _take_paths(settings, checked, '')


def refuse(
  settings: Any, field: str, expected: str, prefix: str = ''
) -> NoReturn:
  """Raises the error of a field whose value is not what was expected.

  Args:
    settings: a config or a section.
    field: in `settings`, with dots.
    expected: what it should be.
    prefix: of a section's fields: its own path and a dot.

  Raises:
    FieldError: always.
  """
  value = operator.attrgetter(field)(settings)
  refuse_value(prefix + field, value, expected)


def refuse_value(field: str, value: Any, expected: str) -> NoReturn:
  """Raises the error of `refuse`, of a value that is found otherwise."""
  raise FieldError(
    f'config.{errors.shorten(field)}',
    f'expected {expected}, got {errors.shorten(repr(value))}',
  )


def types_of(cls: type) -> dict[str, Any]:
  """The type of each field, with its bounds."""
  return typing.get_type_hints(cls, include_extras=True)


def bare(kind: Any) -> Any:
  """A field's type without bounds: a section, or one of Python's own types."""
  if typing.get_origin(kind) is typing.Annotated:
    kind = typing.get_args(kind)[0]
  if typing.get_origin(kind) is typing.Literal:
    return str
  return typing.get_origin(kind) or kind


def kind_of(cls: type, field: str) -> Any:
  """The type of a field, with its bounds.

  Args:
    cls: a section.
    field: in that section, with dots.

  Raises:
    FieldError: there is no such field, or it is a section or in a dict.
  """
  kind: Any = cls
  path = ''
  for part in field.split('.'):
    section = as_section(kind)
    if section is None:
      raise FieldError(
        f'config.{errors.shorten(field)}', f'{path} is no section'
      )
    fields = types_of(section)
    path = f'{path}.{part}'.removeprefix('.')
    if part not in fields:
      _refuse_name(errors.shorten(path), part, fields)
    kind = fields[part]
  if (section := as_section(kind)) is not None:
    raise FieldError(
      f'config.{field}',
      f'a section, not a field; its fields: {", ".join(types_of(section))}',
    )
  if bare(kind) is dict:
    raise FieldError(
      f'config.{field}', 'a dict, which only the config file can set'
    )
  return kind


def as_section(kind: Any) -> type | None:
  """The type itself if it is a section's, that is, a dataclass."""
  found = isinstance(kind, type) and dataclasses.is_dataclass(kind)
  return kind if found else None


def entry_section(kind: Any) -> type | None:
  """T for a dict from names to sections T."""
  if typing.get_origin(kind) is not dict:
    return None
  return as_section(typing.get_args(kind)[1])


def to_dict(settings: Any) -> dict[str, Any]:
  """Settings as nested dicts of JSON values."""
  values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
  return values


def build(cls: type[_T], values: Any, prefix: str = '') -> _T:
  """The inverse of `to_dict`; values are not checked, see `check`.

  Raises:
    FieldError: a section or field is unknown.
  """
  kinds = types_of(cls)
  if not isinstance(values, dict):
    refuse_value(prefix.rstrip('.'), values, 'a section')
  built = {}
  for key, value in values.items():
    if key not in kinds:
      _refuse_name(f'{prefix}{key}', key, kinds)
    entry = entry_section(kinds[key])
    if (section := as_section(kinds[key])) is not None:
      value = build(section, value, f'{prefix}{key}.')
    elif entry is not None and isinstance(value, dict):
      value = {
        name: build(entry, item, f'{prefix}{key}[{name}].')
        for name, item in value.items()
      }
    built[key] = _tuples(value)
  return cls(**built)


@functools.cache
def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
  return pydantic.TypeAdapter(cls)


def _refuse_first(
  settings: Section, invalid: pydantic.ValidationError
) -> NoReturn:
  """Raises the first of pydantic's errors as one that names the field."""
  error = invalid.errors(include_url=False)[0]
  field, kind, value = '', type(settings), settings
  for part in error['loc']:
    section, entry = as_section(kind), entry_section(kind)
    if section is not None and isinstance(value, section):
      field += f'.{part}'
      kind, value = types_of(section)[str(part)], getattr(value, str(part))
    elif entry is not None and isinstance(value, dict) and part in value:
      if part == '':  # No name; the dict is shown.
        break
      field += f'[{part}]'
      kind, value = entry, value[part]
    else:  # An item of a tuple or dict; all of it is shown.
      break
  context = error.get('ctx', {})
  if error['type'] == 'value_error':
    expected = str(context['error'])
  elif error['type'] == 'finite_number':
    expected = 'a finite number'
  else:
    bounds = (b for b in context.values() if isinstance(b, (int, float)))
    expected = field_types.describe(kind, tuple(bounds))
  refuse_value(field.removeprefix('.'), value, expected)


def _refuse_name(path: str, name: str, fields: Mapping[str, Any]) -> NoReturn:
  close = difflib.get_close_matches(name, fields, n=1)
  hint = f'; did you mean {close[0]}?' if close else ''
  raise FieldError(f'config.{path}', f'no such field{hint}')


def _take_paths(settings: Any, checked: Any, prefix: str) -> None:
  """Takes texts, among them paths, over from the checked copy of settings."""
  fields = {field.name: field for field in dataclasses.fields(settings)}
  for name, value in vars(settings).items():
    if name not in fields:
      _refuse_name(f'{prefix}{name}', name, fields)
    new = getattr(checked, name)
    if dataclasses.is_dataclass(value):
      _take_paths(value, new, f'{prefix}{name}.')
    elif isinstance(value, dict):
      for key, entry in value.items():
        if dataclasses.is_dataclass(entry):
          _take_paths(entry, new[key], f'{prefix}{name}[{key}].')
    elif isinstance(value, (str, tuple)):
      setattr(settings, name, new)


def _tuples(value: Any) -> Any:
  """JSON has lists where settings have tuples."""
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
