"""A limit of the size of files, in place of a full disk."""

import contextlib
import resource
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def at(size: int) -> Iterator[None]:
  """Makes every write beyond so many bytes of a file an OSError meanwhile."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Else the signal would end the process.
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
