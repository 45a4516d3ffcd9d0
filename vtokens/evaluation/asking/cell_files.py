"""Answers on disk, one file a cell, so that none is generated twice.

The first line of a file is the identity: all that decides the answers. It also
has the names of base, run and data set, which decide nothing: they come from
paths, which may change between two starts. Each further line has an answer and
its SHA-256. Lines of earlier versions have no SHA-256 and are trusted, or no
confidence, which is None then.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vtokens.evaluation.asking.cells import Answer, Cell
from vtokens.host import checksums, errors, json_files, paths, writers

_NAMES = ('dataset', 'model', 'table')
# A line: the fields of `Answer`, and the id of the question. Those of
# `_NUMBERS` may be absent.
_LINE = {
  'id': str,
  'text': str,
  'num_tokens': int,
  'stop': str,
  'shown': [int],
  'passages_dropped': int,
  'passages_cut': int,
}
_NUMBERS = ('confidence', 'refusal_margin')
_ADVICE = 'delete the file to have its answers computed anew'


class CellFiles:
  """The files of an evaluation.

  Args:
    directory: directory of all files.
  """

  def __init__(self, directory: epath.Path):
    self._directory = directory

  def open(self, cell: Cell, identity: Mapping[str, Any]) -> 'CellFile':
    """The file of a cell.

    Args:
      cell: the cell.
      identity: JSON values, among them `cell`. Another identity is another
        file, unless only names differ.

    Raises:
      errors.UserError: the file is damaged.
    """
    head = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(head.encode()).hexdigest()[:12]
    path = self._directory / f'{_file_name(cell)}-{digest}.jsonl'
    if paths.exists(path):
      answers, size = _read(path, json.loads(head))
      return CellFile(path, head, answers, size)
    # The same cell under other names.
    other = self._others.get(_content(json.loads(head)))
    return CellFile(path, head, {} if other is None else _read(other)[0], 0)

  @functools.cached_property
  def _others(self) -> dict[str, epath.Path]:
    """The files on disk by what decides their answers."""
    found: dict[str, epath.Path] = {}
    if not paths.exists(self._directory):
      return found
    for path in sorted(self._directory.iterdir()):
      if path.suffix == '.jsonl':
        head = next(json_files.read_lines(path, object, _ADVICE), None)
        content = '' if head is None else _content(head[1])
        if content:
          found[content] = path
    return found


class CellFile:
  """The answers of a cell. A last line that a kill cut off is dropped.

  Args:
    path: the file.
    head: its first line.
    answers: answers on disk.
    size: bytes of the file to keep; 0 writes the file anew.

  Attributes:
    path: the file.
    answers: all answers by id of the question.
  """

  def __init__(
    self, path: epath.Path, head: str, answers: dict[str, Answer], size: int
  ):
    self.path = path
    self.answers = answers
    self._head = head
    self._size = size

  def append(self, answers: Mapping[str, Answer]) -> None:
    """Adds answers by id of the question; a kill afterwards loses none."""
    self.answers |= answers
    lines = []
    if not self._size:
      lines.append(self._head)
      # Answers may come from a file with other names.
      answers = self.answers
    for name, answer in answers.items():
      row = checksums.seal({'id': name, **dataclasses.asdict(answer)})
      lines.append(json.dumps(row, ensure_ascii=False))
    data = ''.join(f'{line}\n' for line in lines).encode()
    writers.append(self.path, self._size, data)
    self._size += len(data)


def _read(
  path: epath.Path, head: dict[str, Any] | None = None
) -> tuple[dict[str, Answer], int]:
  """The answers of a file, and the number of bytes that hold them.

  Args:
    path: the file.
    head: the first line that is expected; None for any.
  """
  answers: dict[str, Answer] = {}
  size = 0
  lines = json_files.read_lines(path, _LINE, _ADVICE, head=dict)
  for number, (end, row) in enumerate(lines):
    size = end
    if number:
      if checksums.has_seal(row) and not checksums.is_sealed(row):
        raise errors.UserError(
          f'{path}:{number + 1}: the answer has changed since it was written; '
          f'{_ADVICE}'
        )
      row = checksums.without_seal(row)
      for field in _NUMBERS:
        json_files.check(
          row.get(field),
          f'{path}:{number + 1}: {field}',
          (float, type(None)),
          _ADVICE,
        )
      name = row.pop('id')
      shown = tuple(row.pop('shown'))
      try:
        answers[name] = Answer(**row, shown=shown)
      except TypeError as e:
        raise errors.UserError(f'{path}:{number + 1}: {e}; {_ADVICE}') from None
    elif head is not None and row != head:
      raise errors.UserError(
        f'{path}:1: the line does not belong to the name of the file; {_ADVICE}'
      )
  return answers, size


def _content(head: Any) -> str:
  """What decides the answers, as text; '' if the line is no identity."""
  cell = head.get('cell') if isinstance(head, dict) else None
  if not isinstance(cell, dict):
    return ''
  cell = {key: value for key, value in cell.items() if key not in _NAMES}
  return json.dumps({**head, 'cell': cell}, sort_keys=True)


def _file_name(cell: Cell) -> str:
  """A readable name, which need not be unique.

  It differs from `Cell.file_name` so that earlier evaluations find their files.
  """
  parts = cell.name_parts()
  if not cell.num_passages:
    parts.pop('num_passages', None)
  return re.sub(r'[^\w.]+', '-', '_'.join(filter(None, parts.values())))[:180]
