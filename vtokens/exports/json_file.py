"""JSON files of a base, read and written again."""

import json
import pathlib
from typing import Any

from vtokens.host import json_files


def read_json(path: pathlib.Path) -> Any:
  """Content of a file.

  Raises:
    errors.UserError: it is missing, or not JSON.
  """
  return json_files.read(path, object)


def write_json(path: pathlib.Path, values: Any, indent: int | None = 2) -> None:
  """Writes a file that no one reads yet."""
  text = json.dumps(values, indent=indent, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')
