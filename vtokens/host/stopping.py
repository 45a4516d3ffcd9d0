"""Ends a program when the user or the machine asks for it.

They ask by Ctrl-C, by SIGTERM, or by no longer reading its output, which ends
it as SIGPIPE would. (Python disables that signal, because network connections
raise it too.)
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import typing
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from vtokens.host import aside, streams

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds after which a lost exit is raised again.
_AGAIN = 1.0

T = typing.TypeVar('T')


class Stopped(Exception):
  """A run was asked to stop.

  Attributes:
    exit_code: 128 and the number of the signal.
    agreed: whether all processes of the run stop at the same point.
  """

  def __init__(self, number: int, *, agreed: bool):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.exit_code = 128 + number
    self.agreed = agreed


class StopRequest:
  """Turns Ctrl-C and SIGTERM into a flag that loops check.

  A second signal ends the program at once, in case it hangs. Use it as a
  context manager, in the main thread.

  Attributes:
    signal: number of the signal that came; 0 for none.
  """

  signal: int = 0

  def __init__(
    self,
    among: Callable[[int], int] = lambda number: number,
    *,
    may_leave: bool = True,
  ):
    """Remembers how to ask other processes.

    Args:
      among: maps the signal of this process to that of any process; all call it
        at the same points. See `distributed.AnyProcess`.
      may_leave: see `distributed.may_leave`.
    """
    self._among = among
    self._may_leave = may_leave

  def __enter__(self) -> 'StopRequest':
    self._handling = _handling(self._note)
    self._handling.__enter__()
    return self

  def __exit__(self, *unused: object) -> None:
    self._handling.__exit__(None, None, None)

  def _note(self, number: int) -> None:
    if number == signal.SIGPIPE:
      # Another signal may have reached the reader and this program together.
      self.signal = self.signal or number
      return
    if self.signal in _SIGNALS:
      _end_now(number)
    self.signal = number
    streams.notice(
      f'\n{signal.Signals(number).name}: stopping as soon as the state is '
      'safe\n'
    )

  def check(self) -> None:
    """Raises `Stopped` if a signal has come to this process."""
    if self.signal:
      raise Stopped(self.signal, agreed=False)

  def check_together(self) -> None:
    """Raises `Stopped` on all processes if a signal has come to any.

    All processes must call it at the same points.
    """
    number = self._among(self.signal)
    if number:
      raise Stopped(number, agreed=True)

  def run(self, function: Callable[[], T]) -> T:
    """Calls a function, unless a signal comes to this process first.

    For long work that may be dropped, such as answering a batch or loading
    weights; see `aside.call`. If other processes would wait for this one, the
    signal waits until the function returns.

    Raises:
      Stopped: this process was asked to stop, whatever the others do.
    """

    def look() -> None:
      self.check()
      check()  # For programs that handle signals with `at_once`.

    return aside.call(function, look) if self._may_leave else function()


@contextlib.contextmanager
def in_program() -> Iterator[StopRequest]:
  """A request for work that a program calls for, such as a notebook.

  Signals reach it only in the main thread: Python gives other threads none.
  """
  stop = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  with stop:
    yield stop


class Ended(SystemExit):
  """Raised by a signal within `at_once`.

  It is not an `Exception`, because libraries catch those.
  """


class _AtOnce:
  """See `at_once`.

  Attributes:
    signal: number of the signal that came, or 0.
  """

  signal: int = 0
  # The exit raised last, while it still unwinds.
  _exit: Callable[[], Ended | None] = staticmethod(lambda: None)

  def note(self, number: int) -> None:
    """Ends the program."""
    if number == signal.SIGPIPE:
      self.signal = self.signal or number
    else:
      if self.signal in _SIGNALS:
        _end_now(number)
      self.signal = number
      streams.notice(f'\n{signal.Signals(number).name}: stopped\n')
    self.insist()

  def insist(self) -> None:
    """Raises the exit if it is not unwinding, and checks again later.

    While it unwinds, code that cleans up must not be disturbed.
    """
    # In another thread, it would end only that thread.
    if threading.current_thread() is threading.main_thread():
      signal.setitimer(signal.ITIMER_REAL, _AGAIN)
      if self._exit() is None:
        self.check()

  def check(self) -> None:
    """Raises `Ended` if a signal has come."""
    if self.signal:
      ended = Ended(128 + self.signal)
      self._exit = weakref.ref(ended)
      try:
        raise ended
      finally:
        # Its traceback holds this frame, which would keep it alive.
        del ended


_at_once: _AtOnce | None = None


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """Lets Ctrl-C and SIGTERM end the program after cleaning up.

  For work that is repeated, not continued. The program exits with 128 and the
  signal's number. A second signal ends it without cleaning up.

  Compiled code that calls back into Python may lose the exit, or replace it by
  an error of its own (dm-tree of tensorflow-datasets raises a bare TypeError).
  So the exit is raised again each second, and after a signal the block always
  ends with that exit. Call `check` before the result of the block is put in its
  place.
  """
  global _at_once
  if threading.current_thread() is not threading.main_thread():
    yield  # Python handles signals in the main thread only.
    return
  if _at_once is not None:
    yield
    _at_once.check()
    return
  _at_once = ours = _AtOnce()
  try:
    with _handling(ours.note):
      alarm = signal.signal(signal.SIGALRM, lambda *_: ours.insist())
      hook, sys.unraisablehook = sys.unraisablehook, _without_exit
      try:
        yield
      except Exception:
        if not ours.signal:
          raise
      finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook
  finally:
    _at_once = None
  ours.check()


def _without_exit(lost: Any) -> None:
  """Reports lost exceptions as Python does, but not the exit."""
  if not isinstance(lost.exc_value, Ended):
    sys.__unraisablehook__(lost)


def check() -> None:
  """Raises `Ended` if a signal has come within `at_once`."""
  if _at_once is not None:
    _at_once.check()


@contextlib.contextmanager
def _handling(told: Callable[[int], None]) -> Iterator[None]:
  """Calls a function with the number of each signal."""

  def note(number: int, unused_frame: FrameType | None = None) -> None:
    streams.hurry()
    told(number)

  broken = streams.on_broken
  previous = {number: signal.signal(number, note) for number in _SIGNALS}
  streams.on_broken = lambda: note(signal.SIGPIPE)
  try:
    yield
  finally:
    streams.on_broken = broken
    for number, handler in previous.items():
      signal.signal(number, handler)


def end_now_outside() -> None:
  """Makes a signal outside of all blocks end the program at once.

  Otherwise Python would print a traceback before a program's work begins and
  after it has ended.
  """
  for number in _SIGNALS:
    found = signal.getsignal(number)
    if found in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, lambda number, _: _end_now(number))


def _end_now(number: int) -> None:
  """Prints a line and ends the program as a kill would."""
  streams.notice(f'\n{signal.Signals(number).name}: ended at once\n')
  # Children would outlive the program.
  with contextlib.suppress(Exception):
    for child in multiprocessing.active_children():
      child.kill()
  os._exit(128 + number)
