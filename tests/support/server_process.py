"""Programs that serve models, run for tests."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence

# Not through a proxy that the environment may name.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
# Seconds between two looks.
_PAUSE = 0.2
# Seconds that a server has to end by itself.
_TO_END = 20


def free_port() -> int:
  """A port of this machine on which nothing listens."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@contextlib.contextmanager
def running(
  command: Sequence[str],
  ready: str,
  log: pathlib.Path,
  *,
  env: Mapping[str, str],
  within: float,
) -> Iterator[None]:
  """Runs a server until the block ends, however it ends.

  Args:
    command: starts it in the working directory.
    ready: address that answers with status 200 once it serves.
    log: file for its output.
    env: its environment.
    within: seconds until it serves.

  Raises:
    AssertionError: it ends or does not serve by then; with its output.
  """
  with log.open('w') as output:
    # In a session of its own, so that its own processes can be ended, too.
    process = subprocess.Popen(
      command,
      env=env,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
  try:
    last = time.monotonic() + within
    while not _answers(ready):
      told = log.read_text(errors='replace')[-3000:]
      assert process.poll() is None, f'{command} ended: {told}'
      assert time.monotonic() < last, f'{command} does not serve: {told}'
      time.sleep(_PAUSE)
    yield
  finally:
    _end(process)


def _answers(url: str) -> bool:
  try:
    with _open(url, timeout=5) as answer:
      return answer.status == 200
  except OSError:
    return False


def _end(process: subprocess.Popen) -> None:
  """Ends a server and all processes of its session."""
  if process.poll() is None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(_TO_END)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
