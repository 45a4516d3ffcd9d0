"""Limits of a server, and who is let in."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

from vtokens.server.api_errors import ApiError

# Answers whose seconds tell how long a client should wait.
_REMEMBERED = 0.9


@dataclasses.dataclass(frozen=True)
class Limits:
  """The most that a server takes.

  Attributes:
    body_bytes: of the body of a request (413).
    max_tokens: of an answer (400).
    queue: requests that are answered or wait, together (429).
    seconds: from a request to the end of its answer (504).
    drain_seconds: for running requests once the server is to end.
  """

  body_bytes: int = 1 << 20
  max_tokens: int = 512
  queue: int = 256
  seconds: float = 120.0
  drain_seconds: float = 30.0


class Gate:
  """Counts requests, and refuses those that are too many.

  All calls are made in one thread, that of the event loop.

  Args:
    limits: of the server.

  Attributes:
    inside: requests that are answered or wait.
    closed: whether no more are let in, since the server ends.
  """

  def __init__(self, limits: Limits):
    self._limits = limits
    self._seconds = 1.0
    self.inside = 0
    self.closed = False

  @contextlib.contextmanager
  def enter(self) -> Iterator[None]:
    """Lets a request in until the block ends.

    Raises:
      ApiError: the server ends (503), or there are too many requests (429).
    """
    if self.closed:
      raise ApiError(
        503,
        'the server is ending and takes no more requests',
        code='ending',
        retry_after=5,
      )
    if self.inside >= self._limits.queue:
      raise ApiError(
        429,
        f'{self.inside} requests are answered or wait already, the most that '
        'this server takes; try again later',
        code='queue_full',
        retry_after=max(1, math.ceil(self._seconds)),
      )
    self.inside += 1
    began = time.monotonic()
    try:
      yield
    finally:
      self.inside -= 1
      spent = time.monotonic() - began
      self._seconds += (1 - _REMEMBERED) * (spent - self._seconds)
