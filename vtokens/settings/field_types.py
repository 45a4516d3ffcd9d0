"""Types of settings: what a field may hold, for mypy and for `schema.check`.

A bound that only one field has stands on that field, as
`Annotated[int, Ge(1), Le(256)]`.
"""

import dataclasses
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator

from vtokens.host import errors, paths

# The largest numbers of any field: devices and file formats count in 32 bits
# and compute in 32 bits of floating point.
MOST_INT = 2**31 - 1
MOST_FLOAT = 1e12
# Questions or examples at a time: their rows are made in memory.
MOST_ROWS = 65_536
# Passages of a question or of an example.
MOST_PASSAGES = 100_000
# Below it, logits divided by it leave the range of float32.
_LEAST_TEMPERATURE = 1e-3


def _expand_home(path: str) -> str:
  try:
    return paths.expand_home(path)
  except errors.UserError as e:
    raise ValueError(f'a path that can be found ({e})') from None


def _check_temperature(value: float) -> float:
  if 0 < value < _LEAST_TEMPERATURE:
    raise ValueError(f'0 (greedy), or at least {_LEAST_TEMPERATURE}')
  return value


AnyInt = Annotated[int, Ge(-MOST_INT), Le(MOST_INT)]
NaturalInt = Annotated[int, Ge(0), Le(MOST_INT)]
PositiveInt = Annotated[int, Ge(1), Le(MOST_INT)]
# A random generator's seed has 32 bits; it would drop the rest of a larger one.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Rows = Annotated[int, Ge(1), Le(MOST_ROWS)]
NumPassages = Annotated[int, Ge(0), Le(MOST_PASSAGES)]
# A record is held and written in one piece.
TextBytes = Annotated[int, Ge(1), Le(1 << 30)]
# Of a timeout. A week has fewer.
MOST_SECONDS = 1_000_000

PositiveFloat = Annotated[float, Gt(0), Le(MOST_FLOAT)]
Probability = Annotated[float, Ge(0), Le(1)]
# Of sampling.
Temperature = Annotated[
  float, Ge(0), Le(MOST_FLOAT), AfterValidator(_check_temperature)
]

# Logits differ by less.
MOST_BIAS = 1000.0
RefusalBias = Annotated[float, Ge(-MOST_BIAS), Le(MOST_BIAS)]

# `schema.check` replaces a leading `~` by the home directory.
Path = Annotated[str, AfterValidator(_expand_home)]
# A key of a dict.
Name = Annotated[str, MinLen(1)]

OnBadRecord = Literal['error', 'skip']
# Questions whose source says that they have no answer.
Unanswerable = Literal['skip', 'error', 'keep']
# The same where questions are answered, by a refusal.
OnUnanswerable = Literal['skip', 'error', 'refuse']
# Of a conversation: its first question, or each.
Turns = Literal['first', 'all']

# Bounds that messages leave out unless a value is beyond them.
_GENERAL = (MOST_INT, -MOST_INT, MOST_FLOAT, -MOST_FLOAT)
# In a message: one of a type, and several of it.
_WORDS = {
  bool: ('True or False', 'True or False'),
  int: ('an integer', 'integers'),
  float: ('a number', 'numbers'),
  str: ('a string', 'strings'),
}
_SIGNS: dict[type, str] = {Gt: '>', Ge: '>=', Lt: '<', Le: '<='}


def describe(kind: Any, shown: tuple[Any, ...] = ()) -> str:
  """What a field of a type is expected to be, e.g. 'an integer >= 1'.

  Args:
    kind: a field's type, with its bounds.
    shown: bounds that are given even if every field has them.
  """
  return _describe(kind, shown)[0]


def _describe(kind: Any, shown: tuple[Any, ...]) -> tuple[str, str]:
  """One of a type and several of it, in words."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    one, several = _describe(args[0], shown)
    text = _describe_bounds(args[1:], shown)
    return one + text, several + text
  if origin is Literal:
    words = ', '.join(arg or "''" for arg in args)
    return f'one of {words}', f'any of {words}'
  if origin is tuple:
    length = '' if args[-1] is Ellipsis else f'{len(args)} '
    of = f'of {length}{_describe(args[0], shown)[1]}'
    return f'a tuple {of}', f'tuples {of}'
  if origin is dict:
    of = f'from names to {_describe(args[1], shown)[1]}'
    return f'a dict {of}', f'dicts {of}'
  if dataclasses.is_dataclass(kind) and isinstance(kind, type):
    return f'a {kind.__name__}', kind.__name__
  return _WORDS.get(kind, (str(kind), str(kind)))


def _describe_bounds(metadata: Any, shown: tuple[Any, ...]) -> str:
  bounds = [
    (_SIGNS[type(item)], bound)
    for item in metadata
    if type(item) in _SIGNS
    for bound in dataclasses.astuple(item)
    if bound not in _GENERAL or bound in shown
  ]
  if [sign for sign, _ in bounds] == ['>=', '<=']:
    return f' from {bounds[0][1]:,} to {bounds[1][1]:,}'
  return ' and'.join(f' {sign} {bound:,}' for sign, bound in bounds)
