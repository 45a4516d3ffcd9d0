"""A log of one JSON object a line."""

import datetime
import json
import sys
import threading
from typing import Any, TextIO


class JsonLog:
  """Writes a line for each event.

  Args:
    file: gets the lines; None for standard output.
    texts: whether questions are written, too.

  Attributes:
    texts: the same.
  """

  def __init__(self, file: TextIO | None = None, *, texts: bool = False):
    self._file = file
    self._lock = threading.Lock()
    self.texts = texts

  def write(self, event: str, **values: Any) -> None:
    """Writes an event.

    Args:
      event: its name.
      **values: JSON values; None is left out.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    line = {'time': now, 'event': event} | {
      name: value for name, value in values.items() if value is not None
    }
    text = json.dumps(line, default=str)
    with self._lock:
      print(text, file=self._file or sys.stdout, flush=True)
