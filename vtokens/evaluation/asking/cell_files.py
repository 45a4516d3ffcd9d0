"""Answers on disk, one file a cell, so that none is generated twice.

The first line of a file says what decides its answers, the identity. The names
of a base, a run and a data set are in it too, but decide nothing: they come
from paths, which may change between two starts. Each further line has an answer
and the SHA-256 of it; lines of earlier versions lack that and are believed.
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
# A line of answers: what `Answer` has, and to which question.
_LINE = {
  'id': str,
  'text': str,
  'num_tokens': int,
  'stop': str,
  'shown': [int],
  'passages_dropped': int,
  'passages_cut': int,
}
_ADVICE = 'delete the file to have its answers computed anew'


class CellFiles:
  """The files of an evaluation.

  Args:
    directory: of all of them.
  """

  def __init__(self, directory: epath.Path):
    self._directory = directory

  def open(self, cell: Cell, identity: Mapping[str, Any]) -> 'CellFile':
    """The file of a cell.

    Args:
      cell: which.
      identity: JSON values, among them `cell`; any change of it but for the
        names there makes another file.

    Raises:
      errors.UserError: the file is damaged.
    """
    head = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(head.encode()).hexdigest()[:12]
    path = self._directory / f'{file_name(cell)}-{digest}.jsonl'
    if paths.exists(path):
      answers, size = _read(path, json.loads(head))
      return CellFile(path, head, answers, size)
    # The same cell under other names.
    other = self._others.get(_content(json.loads(head)))
    return CellFile(path, head, {} if other is None else _read(other)[0], 0)

  @functools.cached_property
  def _others(self) -> dict[str, epath.Path]:
    """The files that are there, by what decides their answers."""
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
  """The answers of a cell as they come in. A line cut by a kill is dropped.

  Args:
    path: the file.
    head: its first line.
    answers: those that are there.
    size: bytes of the file that stay; 0 writes it anew.

  Attributes:
    path: the file.
    answers: those that are there, by the question's id.
  """

  def __init__(
    self, path: epath.Path, head: str, answers: dict[str, Answer], size: int
  ):
    self.path = path
    self.answers = answers
    self._head = head
    self._size = size

  def append(self, answers: Mapping[str, Answer]) -> None:
    """Adds answers, by the question's id; a kill after it loses none."""
    self.answers |= answers
    lines = []
    if not self._size:
      lines.append(self._head)
      # Those of a file with other names come along.
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
  """The answers of a file and how many bytes they are.

  Args:
    path: the file.
    head: its first line; None for any.
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
      name = row.pop('id')
      shown = tuple(row.pop('shown'))
      try:
        answers[name] = Answer(**row, shown=shown)
      except TypeError as e:
        raise errors.UserError(f'{path}:{number + 1}: {e}; {_ADVICE}') from None
    elif head is not None and row != head:
      raise errors.UserError(
        f'{path}:1: not what decides the answers of this file; {_ADVICE}'
      )
  return answers, size


def _content(head: Any) -> str:
  """What decides the answers, as a text; '' if a line does not say."""
  cell = head.get('cell') if isinstance(head, dict) else None
  if not isinstance(cell, dict):
    return ''
  cell = {key: value for key, value in cell.items() if key not in _NAMES}
  return json.dumps({**head, 'cell': cell}, sort_keys=True)


def file_name(cell: Cell) -> str:
  """A readable name; not unique."""
  parts = [cell.dataset, cell.model, cell.condition, cell.table]
  if cell.num_active:
    parts.append(f'k{cell.num_active}')
  if cell.num_passages:
    parts += [f'm{cell.num_passages}', cell.retriever]
  return re.sub(r'[^\w.]+', '-', '_'.join(filter(None, parts)))[:180]
