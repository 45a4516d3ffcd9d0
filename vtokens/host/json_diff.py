"""Which fields differ between two JSON objects, as lines for messages."""

from collections.abc import Mapping
from typing import Any

from vtokens.host import errors


def diff(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  root: str = 'config.',
) -> list[str]:
  """Compares two nested objects field by field.

  Args:
    old: the values that were written.
    new: the values now.
    root: prefix of each field's name.

  Returns:
    One line per differing field.
  """
  return list(differences(flat(old), flat(new), root).values())


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Maps dotted field paths to values, over nested objects."""
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
  """Compares two results of `flat`.

  Args:
    there: the values that were written.
    now: the values now.
    root: prefix of each field's name.

  Returns:
    Path of each differing field -> a line with both values.
  """

  def shown(values: Mapping[str, Any], field: str) -> str:
    return errors.shorten(repr(values.get(field, '(absent)')))

  return {
    field: f'{root}{field}: {shown(there, field)} there, '
    f'{shown(now, field)} now'
    for field in sorted(there.keys() | now.keys())
    if there.get(field, ...) != now.get(field, ...)
  }
