"""Responses of a model on disk, so that an interrupted evaluation goes on.

The first line of the file is the identity: all that responses depend on but the
requests. Each further line has the key of a request, the response and a
SHA-256 of the line.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from vtokens.devices import distributed
from vtokens.host import checksums, errors, json_files, paths, writers

_ADVICE = 'delete the file to have its responses computed anew'
_LINE = {'key': str, 'response': list}
# An object store writes the whole file for each append.
_SECONDS_BETWEEN_UPLOADS = 60.0


def key(*parts: Any) -> str:
  """The key of a request: a hash of JSON values that define it."""
  text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


class ResponseLog:
  """A file of responses, which all processes read and the first one writes.

  Args:
    directory: of the file, whose name has a hash of the identity.
    identity: JSON values.

  Raises:
    errors.UserError: the file is damaged.
  """

  def __init__(self, directory: epath.PathLike, identity: Mapping[str, Any]):
    self._head = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(self._head.encode()).hexdigest()[:12]
    self.path = epath.Path(directory) / f'responses-{digest}.jsonl'
    self._size = 0
    self._waiting: list[str] = []
    self._last_write = 0.0
    self._responses = distributed.from_first(self._read)

  def get(self, key: str) -> list[Any] | None:
    """The response to a request; None if there is none."""
    return self._responses.get(key)

  def add(self, responses: Mapping[str, list[Any]]) -> None:
    """Keeps responses, by the keys of their requests."""
    self._responses |= responses
    if not distributed.is_first():
      return
    for name, response in responses.items():
      row = checksums.seal({'key': name, 'response': response})
      self._waiting.append(json.dumps(row, ensure_ascii=False))
    uploads = paths.on_object_store(self.path)
    wait = _SECONDS_BETWEEN_UPLOADS if uploads else 0.0
    if time.monotonic() - self._last_write >= wait:
      self.flush()

  def flush(self) -> None:
    """Writes what waits to be written."""
    if not self._waiting:
      return
    lines = [*([] if self._size else [self._head]), *self._waiting]
    data = ''.join(f'{line}\n' for line in lines).encode()
    writers.append(self.path, self._size, data)
    self._size += len(data)
    self._waiting.clear()
    self._last_write = time.monotonic()

  def _read(self) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    if not paths.exists(self.path):
      return found
    lines = json_files.read_lines(self.path, _LINE, _ADVICE, head=dict)
    for number, (end, row) in enumerate(lines, 1):
      if number == 1 and row != json.loads(self._head):
        raise errors.UserError(
          f'{self.path}:1: found the identity of other responses; {_ADVICE}'
        )
      if number > 1:
        if not checksums.is_sealed(row):
          raise errors.UserError(
            f'{self.path}:{number}: the response has changed since it was '
            f'written; {_ADVICE}'
          )
        found[row['key']] = row['response']
      self._size = end
    return found
