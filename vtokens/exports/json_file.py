"""JSON files of a base, read and written again."""

import json
import pathlib
from typing import Any

from vtokens import errors


def read_json(path: pathlib.Path) -> Any:
  """Content of a file.

  Raises:
    errors.UserError: it is missing, or not JSON.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as e:
    raise errors.UserError(f'{path}: cannot be read: {e}') from None


def write_json(path: pathlib.Path, values: Any, indent: int | None = 2) -> None:
  """Writes a file that no one reads yet."""
  text = json.dumps(values, indent=indent, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')
