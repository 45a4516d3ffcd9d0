"""Long calls that a signal does not have to wait for.

Python tells signals to the main thread, and only between two of its own
instructions. A device that computes, a compiler or a library's loop may keep it
from that for minutes.
"""

import contextlib
import os
import sys
import threading
import typing
from collections.abc import Callable

T = typing.TypeVar('T')

# Seconds between two calls of `check`.
_LOOK = 0.2

# Threads whose results nobody waits for any more.
_left: list[threading.Thread] = []


def call(
  function: Callable[[], T], check: Callable[[], None] = lambda: None
) -> T:
  """What a function returns; it runs in a thread of its own.

  If `check` or a signal's handler raises meanwhile, that is raised here, and
  the thread goes on alone: nothing that it changes may matter then, and the
  program has to end by `end`.

  Args:
    function: takes no lock and writes nothing that has to be whole.
    check: called every so often; may raise to stop waiting.
  """
  if threading.current_thread() is not threading.main_thread():
    return function()
  results: list[T] = []
  failures: list[BaseException] = []
  done = threading.Event()

  def work() -> None:
    try:
      results.append(function())
    except BaseException as e:
      failures.append(e)
    finally:
      done.set()

  thread = threading.Thread(target=work, name='aside', daemon=True)
  thread.start()
  try:
    while not done.wait(_LOOK):
      check()
  except BaseException:
    _left.append(thread)
    raise
  if failures:
    raise failures[0]
  return results[0]


def end(code: str | int | None) -> typing.NoReturn:
  """Exits, without waiting for what `call` has left behind.

  The interpreter's own exit would wait for computations of devices, and ends in
  an abort where a thread is in compiled code.

  Args:
    code: as of `SystemExit`.
  """
  if isinstance(code, int) and any(thread.is_alive() for thread in _left):
    for stream in (sys.stdout, sys.stderr):
      # Nobody may read it, or it may be closed.
      with contextlib.suppress(AttributeError, OSError, ValueError):
        stream.flush()
    os._exit(code)
  sys.exit(code)
