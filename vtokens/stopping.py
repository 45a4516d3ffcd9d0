"""Ending a run between two steps when the user or the machine asks for it."""

import os
import signal
from types import FrameType


class Stopped(Exception):
  """A run was asked to stop."""


class StopRequest:
  """Turns Ctrl-C and SIGTERM into a flag that the loops look at.

  A second signal acts at once, for a run that hangs. Use as a context
  manager, in the main thread.

  Attributes:
    signal: name of the signal that came, or None.
  """

  signal: str | None = None

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
    if self.signal is not None:
      raise KeyboardInterrupt
    self.signal = signal.Signals(number).name
    # Not print: what is interrupted may be printing, and would not let in.
    os.write(
      2, f'\n{self.signal}: stopping as soon as the state is safe\n'.encode()
    )

  def check(self) -> None:
    """Raises `Stopped` if a signal has come."""
    if self.signal is not None:
      raise Stopped(self.signal)
