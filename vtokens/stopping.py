"""Ending a run between two steps when the user or the machine asks for it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Stopped(Exception):
  """A run was asked to stop.

  Attributes:
    exit_code: what programs that a signal ends exit with.
    agreed: whether all processes of the run stop at the same point.
  """

  def __init__(self, number: int, *, agreed: bool):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.exit_code = 128 + number
    self.agreed = agreed


class StopRequest:
  """Turns Ctrl-C and SIGTERM into a flag that the loops look at.

  A second signal acts at once, for a run that hangs. Use as a context
  manager, in the main thread.

  Attributes:
    signal: number of the signal that came, or 0.
  """

  signal: int = 0

  def __init__(self, among: Callable[[int], int] = lambda number: number):
    """Remembers how to ask other processes.

    Args:
      among: told this process's signal, gives the one of any process; called
        by all at the same points. See `distributed.AnyProcess`.
    """
    self._among = among

  def __enter__(self) -> 'StopRequest':
    self._previous = {
      number: signal.signal(number, self._note)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number: int, unused_frame: FrameType | None) -> None:
    if self.signal:
      raise KeyboardInterrupt
    self.signal = number
    # Not print: what is interrupted may be printing, and would not let in.
    os.write(
      2,
      f'\n{signal.Signals(number).name}: stopping as soon as the state is '
      'safe\n'.encode(),
    )

  def check(self) -> None:
    """Raises `Stopped` if a signal has come to this process."""
    if self.signal:
      raise Stopped(self.signal, agreed=False)

  def check_together(self) -> None:
    """Raises `Stopped` on all processes if a signal has come to any.

    To be called by all at the same points.
    """
    number = self._among(self.signal)
    if number:
      raise Stopped(number, agreed=True)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """Lets Ctrl-C and SIGTERM end the program, cleaning up on the way.

  For what is done anew and not continued. It exits with 128 and the signal's
  number; a second signal acts as if this were not here. Compiled code that
  calls back into Python may lose the exit on its way and raise an error of its
  own (dm-tree, which tensorflow-datasets is built on, a bare TypeError), or
  none: however the block ends after a signal, it is that exit.
  """
  if threading.current_thread() is not threading.main_thread():
    yield  # Others cannot be told of signals.
    return

  received = 0

  def stop(number: int, unused_frame: FrameType | None) -> None:
    nonlocal received
    received = number
    give_back()
    os.write(2, f'\n{signal.Signals(number).name}: stopped\n'.encode())
    # Not an Exception, of which libraries catch any.
    sys.exit(128 + number)

  def give_back() -> None:
    for number, handler in previous.items():
      signal.signal(number, handler)

  previous = {
    number: signal.signal(number, stop)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield
  except Exception:
    if not received:
      raise
  finally:
    give_back()
  if received:
    sys.exit(128 + received)
