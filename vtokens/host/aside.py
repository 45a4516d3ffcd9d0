"""Long calls that a signal can interrupt.

Python handles signals in the main thread, between two of its instructions. A
device, a compiler or a library's loop may delay that for minutes.
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

# Threads whose results nobody waits for.
_left: list[threading.Thread] = []


def call(
  function: Callable[[], T], check: Callable[[], None] = lambda: None
) -> T:
  """Calls a function in a thread of its own, and waits for it.

  If `check` or a signal's handler raises meanwhile, so does this call, and the
  thread goes on alone. Then its effects must not matter, and the program must
  end with `end`.

  Args:
    function: must take no lock and write no file that has to be whole.
    check: called five times a second; may raise to stop waiting.

  Returns:
    The result of the function.
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
  """Exits without waiting for threads that `call` left behind.

  The interpreter's own exit waits for devices, and aborts if a thread is in
  compiled code.

  Args:
    code: see `SystemExit`.
  """
  if isinstance(code, int) and any(thread.is_alive() for thread in _left):
    for stream in (sys.stdout, sys.stderr):
      # It may have no reader, or be closed.
      with contextlib.suppress(AttributeError, OSError, ValueError):
        stream.flush()
    os._exit(code)
  sys.exit(code)
