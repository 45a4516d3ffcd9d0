"""The passages that `vtokens.ask` shows: given, from a file, or retrieved."""

import dataclasses
import os
from collections.abc import Sequence

from vtokens.data.records import Passage
from vtokens.host import errors, json_files, paths
from vtokens.retrieval.open_index import OpenIndex
from vtokens.serving import prompt_ids

_LINES = ('.jsonl', '.ndjson')


def read(path: str) -> list[Passage]:
  """Reads a file of passages.

  Args:
    path: JSON lines of `text` and maybe `title` if its name ends in .jsonl;
      otherwise text whose passages have blank lines between them.

  Raises:
    errors.UserError: the file cannot be read, or a line is no passage.
  """
  path = paths.expand_home(path)
  if os.path.splitext(path)[1] in _LINES:
    rows = []
    lines = json_files.read_lines(path, {'text': str}, open_end='keep')
    for number, (_, row) in enumerate(lines, 1):
      try:
        rows += prompt_ids.read_passages([row])
      except errors.UserError as e:
        raise errors.UserError(f'{path}:{number}: {e}') from None
    return rows
  try:
    text = json_files.read_bytes(path).decode()
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'{path}: not UTF-8: {e.reason} at byte {e.start}; expected a text, or '
      'JSON lines in a file that ends in .jsonl'
    ) from None
  parts: list[list[str]] = [[]]
  for line in text.splitlines():
    if line.strip():
      parts[-1].append(line)
    elif parts[-1]:
      parts.append([])
  return prompt_ids.read_passages(['\n'.join(part) for part in parts if part])


@dataclasses.dataclass
class Shown:
  """Which passages a question gets.

  Attributes:
    given: passages for all questions; they take precedence over the index.
    index: where other passages are found; None for none.
    number: most passages that are found.
  """

  given: Sequence[Passage] = ()
  index: OpenIndex | None = None
  number: int = 5

  def of(self, question: str) -> list[Passage]:
    """The passages of a question, best first."""
    if self.given or self.index is None:
      return list(self.given)
    return self.index.search(question, self.number)
