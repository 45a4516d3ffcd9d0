"""Cells of tables: text that may spell an array or an object."""

import ast
import io
import itertools
import json
import re
import tokenize
from typing import Any

_ARRAY = re.compile(r"""\s*\[\s*(['"]).*['"]\s*\]\s*\Z""", re.DOTALL)


class TextCell(str):
  """Text of an untyped table, which may spell an array or an object.

  Where an array is expected, `parsed` reads it; elsewhere it is text.
  """

  __slots__ = ()


def parsed(value: Any) -> Any:
  """Parses a cell that spells an array or object; returns other values as is.

  The spelling is JSON's, or Python's, in which pandas writes columns of lists.
  A tuple or set of strings counts as an array.
  """
  if not isinstance(value, TextCell) or not value.strip().startswith(
    ('[', '{', '(')
  ):
    return value
  try:
    found = json.loads(value)
  except (ValueError, RecursionError):
    found = _python(value)
    if isinstance(found, tuple | set) and all(
      isinstance(item, str) for item in found
    ):
      # A set has no order.
      found = sorted(found) if isinstance(found, set) else list(found)
  return found if isinstance(found, list | dict) else value


def is_like_an_array(text: str) -> bool:
  """Whether a text looks like an array of strings."""
  return bool(_ARRAY.match(text))


def _python(text: str) -> Any:
  """Parses a Python literal; None if the text is not one.

  NumPy prints arrays without commas, which Python would join to one string: not
  a literal here.
  """
  text = text.strip()
  try:
    value = ast.literal_eval(text)
    strings = [
      token.type == tokenize.STRING
      for token in tokenize.generate_tokens(io.StringIO(text).readline)
      if token.type not in (tokenize.NL, tokenize.COMMENT)
    ]
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None
  except tokenize.TokenError:
    return None
  joined = any(a and b for a, b in itertools.pairwise(strings))
  return None if joined else value
