"""Answers on disk, one file a cell, so that none is generated twice."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vtokens import errors, writers
from vtokens.evaluation.cells import Answer, Cell


class CellFile:
  """The answers of a cell as they come in.

  The first line says what decides the answers, the identity; any change of it
  makes another file. A line that a kill cut off is dropped.

  Args:
    directory: of all cells of an evaluation.
    cell: which.
    identity: JSON values.

  Attributes:
    answers: those that are there, by the question's id.
  """

  def __init__(
    self,
    directory: epath.Path,
    cell: Cell,
    identity: Mapping[str, Any],
  ):
    head = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(head.encode()).hexdigest()[:12]
    self.path = directory / f'{file_name(cell)}-{digest}.jsonl'
    self.answers: dict[str, Answer] = {}
    self._size = 0
    if self.path.exists():
      self._read(head)
    self._head = head

  def _read(self, head: str) -> None:
    data = self.path.read_bytes()
    for number, line in enumerate(data.splitlines(keepends=True)):
      if not line.endswith(b'\n'):
        break
      try:
        row = json.loads(line)
        if number:
          name = row.pop('id')
          shown = tuple(row.pop('shown'))
          self.answers[name] = Answer(**row, shown=shown)
        elif line.decode().rstrip('\n') != head:
          raise ValueError('another identity')
      except (AttributeError, ValueError, KeyError, TypeError) as e:
        raise errors.UserError(
          f'{self.path}:{number + 1}: not a line of answers ({e}); delete the '
          'file to have them computed anew'
        ) from None
      self._size += len(line)

  def append(self, answers: Mapping[str, Answer]) -> None:
    """Adds answers, by the question's id; a kill after it loses none."""
    lines = [] if self._size else [self._head]
    for name, answer in answers.items():
      row = {'id': name, **dataclasses.asdict(answer)}
      lines.append(json.dumps(row, ensure_ascii=False))
    data = ''.join(f'{line}\n' for line in lines).encode()
    writers.append(self.path, self._size, data)
    self._size += len(data)
    self.answers |= answers


def file_name(cell: Cell) -> str:
  """A readable name; not unique."""
  parts = [cell.dataset, cell.model, cell.condition, cell.table]
  if cell.num_active:
    parts.append(f'k{cell.num_active}')
  if cell.num_passages:
    parts += [f'm{cell.num_passages}', cell.retriever]
  return re.sub(r'[^\w.]+', '-', '_'.join(filter(None, parts)))[:180]
