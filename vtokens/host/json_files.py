"""Reads JSON files that vtokens wrote. Needs no JAX.

A file may be damaged, cut off or edited: each fault is one message that names
the file.

A `shape` says what the content must be:

  a type       a value of the type; an int counts as a float, a bool as neither
  [shape]      a list of values of the shape
  (a, b)       a value of either shape
  {key: shape} an object with these keys, and maybe others
  {str: shape} an object whose other values all have the shape
  object       anything
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

from etils import epath

from vtokens.host import errors, paths

# Files of vtokens are not nested half as deeply. Deeper nesting would break
# code that follows it by recursion.
_MAX_DEPTH = 64
# Most bytes of a file: a report lists all questions of an evaluation.
_LARGEST = 4 << 30


def read(path: epath.PathLike, shape: Any = dict, advice: str = '') -> Any:
  """Reads a JSON file.

  Args:
    path: the file.
    shape: what it must hold; see the module.
    advice: how messages end: what to do about a fault.

  Raises:
    errors.UserError: the file is missing, cannot be read, is not JSON in UTF-8,
      or has another shape.
  """
  return parse(read_bytes(path, advice), str(path), shape, advice)


def read_lines(
  path: epath.PathLike,
  shape: Any = dict,
  advice: str = '',
  *,
  head: Any = None,
  open_end: Literal['drop', 'try', 'keep'] = 'drop',
) -> Iterator[tuple[int, Any]]:
  """Reads a file with JSON on each line.

  Args:
    path: the file.
    shape: what a line must be; see the module.
    advice: how messages end: what to do about a fault.
    head: shape of the first line; None if it is like the others.
    open_end: what to do with a last line without a line break: drop it, since a
      kill cut it off; try whether it has the shape, else drop it; or keep it
      as a line like any other, in a file that people write.

  Yields:
    The number of bytes up to the end of the line, and its value.

  Raises:
    errors.UserError: the file cannot be read, or a line has another shape.
  """
  size = 0
  *lines, rest = read_bytes(path, advice).split(b'\n')
  for number, line in enumerate(lines, 1):
    size += len(line) + 1
    wanted = head if head is not None and number == 1 else shape
    yield size, parse(line, f'{path}:{number}', wanted, advice)
  if open_end == 'drop' or not rest.strip():
    return
  wanted = head if head is not None and not lines else shape
  try:
    value = parse(rest, f'{path}:{len(lines) + 1}', wanted, advice)
  except errors.UserError:
    if open_end == 'keep':
      raise
  else:
    yield size + len(rest), value


def read_bytes(path: epath.PathLike, advice: str = '') -> bytes:
  """Reads a file.

  Raises:
    errors.UserError: it is missing or cannot be read.
  """
  paths.check_file(path, _LARGEST)
  try:
    data: bytes = epath.Path(path).read_bytes()
  except Exception as e:
    if not paths.makes_unreadable(e):
      raise
    reason = paths.reason(e)
    raise _error(str(path), f'cannot be read: {reason}', advice) from e
  return data


def parse(
  data: bytes | str, where: str, shape: Any = dict, advice: str = ''
) -> Any:
  """Parses JSON.

  Args:
    data: the text, in UTF-8.
    where: source of the text, for messages.
    shape: what it must be; see the module.
    advice: how messages end: what to do about a fault.

  Raises:
    errors.UserError: it is not JSON in UTF-8, or has another shape.
  """
  try:
    text = data if isinstance(data, str) else data.decode()
    value = json.loads(text)
  except UnicodeDecodeError as e:
    problem = f'not UTF-8: {e.reason} at byte {e.start}'
    raise _error(where, problem, advice) from None
  except ValueError as e:
    raise _error(where, f'not JSON: {e}', advice) from None
  except RecursionError:
    raise _error(where, 'not JSON: nested too deeply', advice) from None
  if _depth(value) > _MAX_DEPTH:
    raise _error(where, f'nested more than {_MAX_DEPTH} deep', advice)
  check(value, where, shape, advice)
  return value


def check(value: Any, where: str, shape: Any, advice: str = '') -> None:
  """Raises if a JSON value has another shape.

  Args:
    value: the value.
    where: source of the value, for messages.
    shape: what it must be; see the module.
    advice: how messages end: what to do about a fault.

  Raises:
    errors.UserError: it has another shape.
  """
  problem = _mismatch(value, shape, '')
  if problem:
    raise _error(where, problem, advice)


def _error(where: str, problem: str, advice: str) -> errors.UserError:
  return errors.UserError(f'{where}: {problem}{"; " if advice else ""}{advice}')


def _depth(value: Any) -> int:
  """Counts nested lists and objects, up to one more than is allowed."""
  level, depth = [value], 0
  while level and depth <= _MAX_DEPTH:
    level = [
      inner
      for one in level
      for inner in (
        one.values()
        if isinstance(one, dict)
        else one
        if isinstance(one, list)
        else ()
      )
      if isinstance(inner, (dict, list))
    ]
    depth += 1
  return depth


def _mismatch(value: Any, shape: Any, place: str) -> str:
  """Says where and how a value differs from a shape; '' if it does not."""
  if isinstance(shape, tuple):
    found = [_mismatch(value, one, place) for one in shape]
    return '' if '' in found else found[0]
  if isinstance(shape, list):
    if not isinstance(value, list):
      return _expected('a list', value, place)
    parts = ((item, shape[0], f'{place}[{i}]') for i, item in enumerate(value))
  elif isinstance(shape, dict):
    if not isinstance(value, dict):
      return _expected('an object', value, place)
    missing = [key for key in shape if key is not str and key not in value]
    if missing:
      return f'{place}.{missing[0]} is missing'.lstrip('.')
    parts = (
      (item, shape.get(key, shape.get(str, object)), f'{place}.{key}'[:200])
      for key, item in value.items()
    )
  else:
    kinds = (int, float) if shape is float else shape
    fits = isinstance(value, kinds) and (
      shape in (bool, object) or not isinstance(value, bool)
    )
    return '' if fits else _expected(_NAMES.get(shape, ''), value, place)
  return next(filter(None, (_mismatch(*part) for part in parts)), '')


_NAMES = {
  bool: 'true or false',
  dict: 'an object',
  float: 'a number',
  int: 'a whole number',
  list: 'a list',
  str: 'a text',
}


def _expected(what: str, value: Any, place: str) -> str:
  text = json.dumps(value, ensure_ascii=False)
  found = text if len(text) <= 60 else f'{text[:60]}...'
  where = f'{place.lstrip(".")}: ' if place else ''
  return f'{where}expected {what}, got {found}'
