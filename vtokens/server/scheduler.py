"""A thread that answers questions in batches, as they come."""

import asyncio
import collections
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from vtokens.server.api_errors import ApiError
from vtokens.server.questions import Piece

# With one batch more than runs, a question that comes does not wait for the
# longest answer; with many, each step would answer few questions.
_MOST_BATCHES = 2


class Job:
  """A question that waits or is answered.

  Args:
    work: the question, as the batch takes it.

  Attributes:
    work: the same.
    dropped: whether nobody waits for the answer any more.
  """

  def __init__(self, work: Any):
    self.work = work
    self.dropped = False
    self._loop = asyncio.get_running_loop()
    self._pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

  def put(self, *pieces: Piece | Exception | None) -> None:
    """Hands pieces on, an error, or None for the end; from any thread."""
    try:
      self._loop.call_soon_threadsafe(self._put, pieces)
    except RuntimeError:
      # The loop has ended: nobody waits.
      self.dropped = True

  def _put(self, pieces: Sequence[Piece | Exception | None]) -> None:
    for piece in pieces:
      self._pieces.put_nowait(piece)

  async def pieces(self) -> AsyncGenerator[Piece, None]:
    """Gives what is put."""
    while (piece := await self._pieces.get()) is not None:
      if isinstance(piece, Exception):
        raise piece
      yield piece


class Running(Protocol):
  """A batch that is answered."""

  @property
  def jobs(self) -> Sequence[Job]:
    """Its jobs."""

  @property
  def done(self) -> bool:
    """Whether all of them have their answer."""

  def advance(self) -> None:
    """Generates a few tokens, puts pieces into the jobs, ends dropped ones."""


class Scheduler:
  """Answers jobs in one thread.

  Args:
    start: makes a batch of jobs.
    batch_size: most jobs of a batch.
  """

  def __init__(
    self, start: Callable[[Sequence[Job]], Sequence[Running]], batch_size: int
  ):
    self._start = start
    self._batch_size = batch_size
    self._waiting: collections.deque[Job] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(
      target=self._work, name='answers', daemon=True
    )
    self._thread.start()

  @property
  def alive(self) -> bool:
    """Whether jobs are answered."""
    return self._thread.is_alive() and not self._closed

  def submit(self, job: Job) -> None:
    """Has a job answered.

    Raises:
      ApiError: the scheduler is closed.
    """
    with self._changed:
      if self._closed:
        raise _ending()
      self._waiting.append(job)
      self._changed.notify()

  def close(self) -> None:
    """Ends the thread; jobs that have no answer yet end in errors."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _work(self) -> None:
    running: list[Running] = []
    while not self._closed:
      if jobs := self._take(len(running)):
        try:
          running += self._start(jobs)
        # The thread must go on, whatever happens to a batch.
        except Exception as e:
          _fail(jobs, e)
      for batch in list(running):
        try:
          batch.advance()
        except Exception as e:
          _fail(batch.jobs, e)
          running.remove(batch)
          continue
        if batch.done:
          running.remove(batch)
    _fail([job for batch in running for job in batch.jobs], _ending())
    _fail(list(self._waiting), _ending())

  def _take(self, num_running: int) -> list[Job]:
    """The next jobs; waits for some if nothing runs."""
    with self._changed:
      while True:
        waiting = [job for job in self._waiting if not job.dropped]
        self._waiting = collections.deque(waiting)
        if self._closed or num_running >= _MOST_BATCHES:
          return []
        if waiting or num_running:
          break
        self._changed.wait()
      return [
        self._waiting.popleft()
        for _ in range(min(self._batch_size, len(waiting)))
      ]


def _ending() -> ApiError:
  return ApiError(503, 'the server is ending', code='ending')


def _fail(jobs: Sequence[Job], error: Exception) -> None:
  for job in jobs:
    job.put(error)
