"""Reads again the JSON that vtokens has written. Needs no JAX.

What is read may have been damaged, cut off or edited meanwhile: each fault is
one message that names the file.

The functions take a `shape`, which says what the content has to be:

  a type       a value of it; an int will do for a float, a bool for neither
  [shape]      a list of such values
  (a, b)       a value of either shape
  {key: shape} an object that has these keys, and may have others
  {str: shape} an object, all of whose values not listed by key are of a shape
  object       anything
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from vtokens.host import errors, paths

# Nothing that vtokens writes is nested half as deeply. More would end other
# code, which follows the nesting by recursion.
_MAX_DEPTH = 64
# Bytes of a file: a report lists the questions of an evaluation.
_LARGEST = 4 << 30


def read(path: epath.PathLike, shape: Any = dict, advice: str = '') -> Any:
  """The content of a file of JSON.

  Args:
    path: the file.
    shape: what it has to hold; see the module.
    advice: how messages end: what to do about it.

  Raises:
    errors.UserError: the file is missing, cannot be read, is no JSON in UTF-8,
      or holds something else.
  """
  return parse(read_bytes(path, advice), str(path), shape, advice)


def read_lines(
  path: epath.PathLike,
  shape: Any = dict,
  advice: str = '',
  *,
  head: Any = None,
  open_end: bool = False,
) -> Iterator[tuple[int, Any]]:
  """The lines of a file that has JSON on each.

  What follows the last line break was cut off by a kill, and is left out.

  Args:
    path: the file.
    shape: of a line; see the module.
    advice: how messages end: what to do about it.
    head: shape of the first line, if that is another.
    open_end: also take what follows the last line break, if it is of the shape.

  Yields:
    The number of bytes up to and with the line, and its value.

  Raises:
    errors.UserError: the file cannot be read, or a line is not of the shape.
  """
  size = 0
  *lines, rest = read_bytes(path, advice).split(b'\n')
  for number, line in enumerate(lines, 1):
    size += len(line) + 1
    wanted = head if head is not None and number == 1 else shape
    yield size, parse(line, f'{path}:{number}', wanted, advice)
  if open_end:
    with contextlib.suppress(errors.UserError):
      yield size + len(rest), parse(rest, str(path), shape)


def read_bytes(path: epath.PathLike, advice: str = '') -> bytes:
  """The content of a file.

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
  """The value that a JSON text stands for.

  Args:
    data: the text, in UTF-8.
    where: it is from, for messages.
    shape: what it has to be; see the module.
    advice: how messages end: what to do about it.

  Raises:
    errors.UserError: it is no JSON in UTF-8, or something else.
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
  """Raises if a value that was read is not of a shape.

  Args:
    value: of JSON.
    where: it is from, for messages.
    shape: what it has to be; see the module.
    advice: how messages end: what to do about it.

  Raises:
    errors.UserError: it is something else.
  """
  problem = _mismatch(value, shape, '')
  if problem:
    raise _error(where, problem, advice)


def _error(where: str, problem: str, advice: str) -> errors.UserError:
  return errors.UserError(f'{where}: {problem}{"; " if advice else ""}{advice}')


def _depth(value: Any) -> int:
  """How many lists and objects are in one another, up to one too many."""
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
  """Where a value is not of a shape, and how; '' if it is."""
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
