"""Standard output and standard error of a program, whoever reads them.

A reader may have gone (`| head -1`), may not read (a pipe that is full), or
may not be there from the start (`>&-`). None of this may cost a run its state
or keep it from ending.
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

# Seconds between two looks at whether the program is to end.
_TICK = 0.1
# Seconds that output may still take once the program is to end.
_PATIENCE = 2.0

_streams: list[TextIO] = []
_deadline: float | None = None
# Whether the reader of one of them has gone.
_broken = False
# Threads share the streams, and both streams may be one pipe.
_lock = threading.RLock()


def _ignore() -> None:
  """`finish` tells of it."""


# Called on each write to a stream whose reader has gone, in any thread.
on_broken: Callable[[], None] = _ignore


def guard() -> None:
  """Makes `sys.stdout` and `sys.stderr` streams that do not block an end.

  For programs, before they write anything; `finish` belongs to it. A stream
  that has taken the place of a standard one before, as those of test runners
  do, stays.
  """
  if _streams:
    return
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # Else the next file opened gets the number, and what compiled libraries
      # write to standard error goes into that file.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  for name, number in (('stdout', 1), ('stderr', 2)):
    old = getattr(sys, name)
    if old is not getattr(sys, f'__{name}__'):
      continue
    stream: TextIO
    if old is None:
      # Closed from the start; the number may be that of another file by now.
      stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w')
    else:
      old.flush()
      stream = io.TextIOWrapper(
        io.BufferedWriter(_Patient(number)),
        encoding=old.encoding,
        # A character that a terminal does not have must not end a run.
        errors='backslashreplace',
        line_buffering=name == 'stderr' or old.isatty(),
      )
    setattr(sys, name, stream)
    _streams.append(stream)


def finish() -> bool:
  """Writes what is still in the buffers.

  Returns:
    Whether everything could be written.
  """
  for stream in _streams:
    stream.flush()
  return not _broken


def hurry() -> None:
  """From now on a reader that does not read is waited for no more."""
  global _deadline
  if _deadline is None:
    _deadline = time.monotonic() + _PATIENCE


def notice(text: str) -> None:
  """Writes to standard error, from a signal handler too, or not at all.

  A signal may come while something is printed, and streams do not let their
  own signal handler in: so past them.
  """
  try:
    number = sys.stderr.fileno()
    if _is_ready(number):
      os.write(number, text.encode()[: select.PIPE_BUF])
  # No such stream, or none with a number, or nobody reads it.
  except (AttributeError, OSError, ValueError):
    pass


def _is_ready(number: int, seconds: float = 0.0) -> bool:
  """Whether a write to a descriptor would not wait, now or within a time."""
  # Not select(), which refuses numbers from 1,024 on.
  waiting = select.poll()
  waiting.register(number, select.POLLOUT)
  return bool(waiting.poll(1000 * seconds))


class _Patient(io.RawIOBase):
  """A file descriptor that is waited for outside of the system call.

  A write to a full pipe sleeps in the kernel; a signal interrupts it, but
  after the handler Python goes on with it. The descriptor is not made
  non-blocking: it would be for all programs that share the terminal.

  Args:
    number: of the descriptor.
  """

  def __init__(self, number: int):
    self._number = number
    self._broken = False
    # Linux can write to pipes so, even to one that is nearly full, which is
    # not reported as ready.
    is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
    self._flag = getattr(os, 'RWF_NOWAIT', 0) if is_pipe else 0

  def fileno(self) -> int:
    """Its number."""
    return self._number

  def isatty(self) -> bool:
    """Whether it is a terminal."""
    return os.isatty(self._number)

  def writable(self) -> bool:
    """It is."""
    return True

  def write(self, data: Any) -> int:
    """Writes some of the data; drops it where nobody will read it.

    Returns:
      Number of bytes written or dropped.

    Raises:
      OSError: there is no room on a disk, for example; once.
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
    """Number of bytes that could be written without waiting."""
    if self._flag:
      try:
        return os.pwritev(self._number, [data], -1, self._flag)
      except BlockingIOError:
        return 0
      except OSError as e:
        if e.errno != errno.EOPNOTSUPP:
          raise
        self._flag = 0  # Of an older kernel.
    with _lock:
      if _is_ready(self._number):
        return os.write(self._number, data)
    return 0

  def _fail(self, error: OSError) -> None:
    global _broken
    self._broken = True
    if error.errno == errno.EPIPE:
      _broken = True
    # A terminal that was closed while the run goes on is no mistake.
    elif error.errno != errno.EIO:
      name = {1: 'standard output', 2: 'standard error'}[self._number]
      raise OSError(error.errno, error.strerror, name) from None
