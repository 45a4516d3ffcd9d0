"""Settings as nested dataclasses: type checks, JSON and differences.

A field is a bool, int, float, str, a tuple of such, another dataclass (a
section), or a dict from names to any of these.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from vtokens.host import errors, paths

_PATH = 'path'

# Largest numbers of any field, but for those with less of their own. Devices
# and file formats count in 32 bits, and compute in 32 bits of floating point.
MOST_INT = 2**31 - 1
MOST_FLOAT = 1e12
# A random generator's seed has 32 bits; of a larger one it would drop the rest.
MOST_SEED = 2**32 - 1
# Questions or examples at a time: their rows are made in memory.
MOST_ROWS = 65_536
# Passages of a question or of an example.
MOST_PASSAGES = 100_000
_ENTRY = re.compile(r'\[[^]]*\]')


def path(default: str | tuple[str, ...] = '') -> Any:
  """A field of a path, or of a tuple of paths: `check` expands `~` there."""
  return dataclasses.field(default=default, metadata={_PATH: True})


def flatten(settings: Any, prefix: str = '') -> dict[str, Any]:
  """Field path -> value, over all sections.

  Raises:
    errors.UserError: a value has not the type that is declared.
  """
  flat: dict[str, Any] = {}
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    value, path = getattr(settings, field.name), prefix + field.name
    kind = hints[field.name]
    if (section := as_section(kind)) is not None:
      flat |= _section(value, section, path)
    elif (entry := _entry_section(kind)) is not None:
      if not isinstance(value, dict) or not all(map(_is_name, value)):
        _refuse(path, f'a dict from names to {entry.__name__}', value)
      for name, section in value.items():
        flat |= _section(section, entry, f'{path}[{name}]')
      flat[path] = value
    elif _fits(value, kind):
      flat[path] = value
    else:
      _refuse(path, _describe(kind), value)
  return flat


def check(
  settings: Any,
  choices: Mapping[str, Sequence[str]],
  *,
  positive: Sequence[str] = (),
  not_negative: Sequence[str] = (),
  most: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], Callable[[str, str], NoReturn]]:
  """What every validation of settings begins with.

  Args:
    settings: of any class. In its paths a leading `~` becomes the home
      directory, so that all that follows, records included, has one name for
      one place.
    choices: by field path, the values that are allowed.
    positive: fields of numbers above 0.
    not_negative: fields of numbers not below 0.
    most: by field path, with `[]` for the name of an entry, the largest number
      allowed, where it is less than `MOST_INT` or `MOST_FLOAT`.

  Returns:
    `flatten` of the settings, and `fail(field, expected)`, which raises an
    error that names field and value.

  Raises:
    errors.UserError: a value has a wrong type, is not finite, too large, or
      not among those allowed.
  """
  flatten(settings)
  _expand_paths(settings, 'config.')
  values = flatten(settings)

  def fail(field: str, expected: str) -> NoReturn:
    _refuse(field, expected, values[field])

  for field, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      fail(field, 'a finite number')
    _check_size(field, value, most or {}, fail)
  for field, allowed in choices.items():
    if values[field] not in allowed:
      fail(field, f'one of {", ".join(allowed)}')
  for field in positive:
    if values[field] <= 0:
      fail(field, 'a number above 0')
  for field in not_negative:
    if values[field] < 0:
      fail(field, 'a number not below 0')
  return values, fail


def _check_size(
  field: str,
  value: Any,
  most: Mapping[str, float],
  fail: Callable[[str, str], NoReturn],
) -> None:
  """Refuses numbers that are too large, in a tuple or dict as well."""
  if isinstance(value, tuple):
    items: Iterable[Any] = value
  elif isinstance(value, dict):
    items = value.values()
  elif isinstance(value, (int, float)):
    largest = MOST_INT if isinstance(value, int) else MOST_FLOAT
    largest = most.get(_ENTRY.sub('[]', field), largest)
    if abs(value) > largest:
      fail(field, f'at most {largest:,}')
    return
  else:
    return
  for item in items:
    _check_size(field, item, most, fail)


def to_dict(settings: Any) -> dict[str, Any]:
  """Settings as nested dicts of JSON values."""
  return json.loads(json.dumps(dataclasses.asdict(settings)))


def build(cls: type, values: dict[str, Any], prefix: str = '') -> Any:
  """The inverse of `to_dict`, types unchecked: see `flatten`.

  Raises:
    errors.UserError: a section or field is unknown.
  """
  hints = typing.get_type_hints(cls)
  if not isinstance(values, dict):
    _refuse(prefix.rstrip('.'), 'a section', values)
  for key in values:
    if key not in hints:
      close = difflib.get_close_matches(key, hints, n=1)
      hint = f'; did you mean {close[0]}?' if close else ''
      raise errors.UserError(f'config.{prefix}{key}: no such field{hint}')
  built = {}
  for key, value in values.items():
    entry = _entry_section(hints[key])
    if (section_type := as_section(hints[key])) is not None:
      value = build(section_type, value, f'{prefix}{key}.')
    elif entry is not None and isinstance(value, dict):
      value = {
        name: build(entry, section, f'{prefix}{key}[{name}].')
        for name, section in value.items()
      }
    built[key] = _tuples(value)
  return cls(**built)


def diff(
  old: dict[str, Any],
  new: dict[str, Any],
  root: str = 'config.',
  absent: dict[str, Any] | None = None,
) -> list[str]:
  """One line for each field in which two `to_dict` results differ.

  Args:
    old: what is there.
    new: what it is compared with.
    root: before each field's name.
    absent: what fields are that `old` does not have, as those that came with a
      later version.
  """
  there = flat(absent or {}) | flat(old)
  return list(differences(there, flat(new), root).values())


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Field path -> value, over the nested dicts of `to_dict`."""
  found: dict[str, Any] = {}
  for key, value in values.items():
    if isinstance(value, dict):
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


def differences(
  there: Mapping[str, Any], now: Mapping[str, Any], root: str = 'config.'
) -> dict[str, str]:
  """A line for each field, by its path, in which results of `flat` differ.

  Args:
    there: what is there.
    now: what it is compared with.
    root: before each field's name.
  """

  def shown(values: Mapping[str, Any], field: str) -> str:
    return errors.shorten(repr(values.get(field, '(absent)')))

  return {
    field: f'{root}{field}: {shown(there, field)} there, '
    f'{shown(now, field)} now'
    for field in sorted(there.keys() | now.keys())
    if there.get(field, ...) != now.get(field, ...)
  }


def as_section(kind: Any) -> type | None:
  """The type itself if it is a section's, that is, a dataclass."""
  found = isinstance(kind, type) and dataclasses.is_dataclass(kind)
  return kind if found else None


def _expand_paths(settings: Any, prefix: str) -> None:
  """Replaces `~` in the fields made by `path`; types have been checked."""
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if dataclasses.is_dataclass(value):
      _expand_paths(value, f'{prefix}{field.name}.')
    elif isinstance(value, dict):
      for name, entry in value.items():
        if dataclasses.is_dataclass(entry):
          _expand_paths(entry, f'{prefix}{field.name}[{name}].')
    elif _PATH in field.metadata:
      try:
        setattr(settings, field.name, _expanded(value))
      except errors.UserError as e:
        raise errors.UserError(f'{prefix}{field.name}: {e}') from None


def _expanded(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
  if isinstance(value, tuple):
    return tuple(map(paths.expand_home, value))
  return paths.expand_home(value)


def _section(value: Any, kind: type, path: str) -> dict[str, Any]:
  if not isinstance(value, kind):
    _refuse(path, f'a {kind.__name__}', value)
  return flatten(value, f'{path}.')


def _entry_section(kind: Any) -> type | None:
  """T for a dict of names to dataclasses T."""
  if typing.get_origin(kind) is not dict:
    return None
  return as_section(typing.get_args(kind)[1])


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value has a declared type; bool is not an int here."""
  if typing.get_origin(kind) is dict:
    return isinstance(value, dict) and all(
      _is_name(name) and _fits(item, typing.get_args(kind)[1])
      for name, item in value.items()
    )
  if isinstance(kind, types.GenericAlias):
    args = typing.get_args(kind)
    if not isinstance(value, tuple):
      return False
    if args[-1] is Ellipsis:
      return all(_fits(v, args[0]) for v in value)
    return len(value) == len(args) and all(map(_fits, value, args))
  if kind is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, kind)


def _refuse(path: str, expected: str, value: Any) -> NoReturn:
  raise errors.UserError(
    f'config.{errors.shorten(path)}: expected {expected}, got '
    f'{errors.shorten(repr(value))}'
  )


def _describe(kind: Any) -> str:
  return str(kind) if isinstance(kind, types.GenericAlias) else kind.__name__


def _tuples(value: Any) -> Any:
  """JSON has lists where settings have tuples."""
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
