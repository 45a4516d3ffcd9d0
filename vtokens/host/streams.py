"""Standard output and standard error that cannot block or break a run.

Their reader may leave (`| head -1`), stop reading (the pipe is full), or be
missing from the start (`>&-`). In no case may a run lose its state or fail to
end.
"""

import errno
import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

# Seconds between two checks whether the program must end.
_TICK = 0.1
# Seconds that output may still take once the program must end.
_PATIENCE = 2.0

_streams: list[TextIO] = []
_deadline: float | None = None
# Whether the reader of a stream has gone.
_broken = False
# Threads share the streams, and both streams may be one pipe.
_lock = threading.RLock()


def _ignore() -> None:
  """Does nothing: `finish` reports it."""


# Called in any thread, on each write to a stream whose reader has gone.
on_broken: Callable[[], None] = _ignore


def guard() -> None:
  """Replaces `sys.stdout` and `sys.stderr` by streams that cannot block.

  Programs call it before they write anything, and `finish` at their end. A
  stream that a test runner has put in place stays.
  """
  if _streams:
    return
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # Otherwise the next opened file gets this number, and compiled libraries
      # write their messages into that file.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  for name, number in (('stdout', 1), ('stderr', 2)):
    old = getattr(sys, name)
    if old is not getattr(sys, f'__{name}__'):
      continue
    stream: TextIO
    if old is None:
      # It was closed from the start; another file may have its number by now.
      stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w')
    else:
      old.flush()
      stream = io.TextIOWrapper(
        io.BufferedWriter(_Patient(number)),
        encoding=old.encoding,
        # A character that the terminal lacks must not end a run.
        errors='backslashreplace',
        line_buffering=name == 'stderr' or old.isatty(),
      )
    setattr(sys, name, stream)
    _streams.append(stream)


def finish() -> bool:
  """Flushes the streams.

  Returns:
    Whether everything could be written.
  """
  for stream in _streams:
    stream.flush()
  return not _broken


def hurry() -> None:
  """Limits the time that output waits for a reader that does not read."""
  global _deadline
  if _deadline is None:
    _deadline = time.monotonic() + _PATIENCE


def notice(text: str) -> None:
  """Writes to standard error if it can do so at once.

  Signal handlers may call it: it bypasses the streams, which a signal may have
  interrupted in the middle of a print.
  """
  try:
    number = sys.stderr.fileno()
    if _is_ready(number):
      os.write(number, text.encode()[: select.PIPE_BUF])
  # There is no such stream, it has no descriptor, or no reader.
  except (AttributeError, OSError, ValueError):
    pass


def _is_ready(number: int, seconds: float = 0.0) -> bool:
  """Whether a descriptor can be written without waiting, within a time."""
  # select() would refuse numbers from 1,024 on.
  waiting = select.poll()
  waiting.register(number, select.POLLOUT)
  return bool(waiting.poll(1000 * seconds))


class _Patient(io.RawIOBase):
  """A file descriptor that is never written before it is ready.

  A write to a full pipe would sleep in the kernel, and Python would resume it
  after a signal's handler. Making the descriptor non-blocking would affect all
  programs that share the terminal.

  Args:
    number: of the descriptor.
  """

  def __init__(self, number: int):
    self._number = number
    self._broken = False
    # With this flag, Linux writes to a nearly full pipe too, which poll() does
    # not report as ready.
    is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
    self._flag = getattr(os, 'RWF_NOWAIT', 0) if is_pipe else 0

  def fileno(self) -> int:
    """Returns the number of the descriptor."""
    return self._number

  def isatty(self) -> bool:
    """Whether the descriptor is a terminal."""
    return os.isatty(self._number)

  def writable(self) -> bool:
    """Always true."""
    return True

  def write(self, data: Any) -> int:
    """Writes some of the data, or drops it if nobody will read it.

    Returns:
      Number of bytes written or dropped.

    Raises:
      OSError: e.g. the disk is full; raised once.
    """
    data = data[: select.PIPE_BUF]
    while not self._broken:
      try:
        written = self._write_now(data)
      except OSError as e:
        self._fail(e)
        continue
      if written:
        return written
      if _deadline is not None and time.monotonic() > _deadline:
        return len(data)
      _is_ready(self._number, _TICK)
    if _broken:
      on_broken()
    return len(data)

  def _write_now(self, data: memoryview) -> int:
    """Writes what can be written at once; returns the number of bytes."""
    if self._flag:
      try:
        return os.pwritev(self._number, [data], -1, self._flag)
      except BlockingIOError:
        return 0
      except OSError as e:
        if e.errno != errno.EOPNOTSUPP:
          raise
        self._flag = 0  # The kernel is too old for it.
    with _lock:
      if _is_ready(self._number):
        return os.write(self._number, data)
    return 0

  def _fail(self, error: OSError) -> None:
    global _broken
    self._broken = True
    if error.errno == errno.EPIPE:
      _broken = True
    # Closing the terminal of a run is not an error.
    elif error.errno != errno.EIO:
      name = {1: 'standard output', 2: 'standard error'}[self._number]
      raise OSError(error.errno, error.strerror, name) from None
