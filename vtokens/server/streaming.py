"""Replies that come in parts, and clients that go away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vtokens.server import replies
from vtokens.server.api_errors import ApiError, ClientGoneError
from vtokens.server.questions import Piece

_T = TypeVar('_T')


async def events(
  reply: replies.Shape,
  first: Piece,
  pieces: AsyncGenerator[Piece, None],
  *,
  with_usage: bool,
) -> AsyncGenerator[bytes, None]:
  """The events of a stream. An error ends it with an event of its own."""
  async with contextlib.aclosing(pieces):
    yield replies.event(reply.first())
    piece: Piece | None = first
    try:
      while piece is not None:
        yield replies.event(reply.part(piece))
        if with_usage and piece.usage is not None:
          yield replies.event(reply.usage(piece.usage))
        piece = await anext(pieces, None)
    except ApiError as e:
      yield replies.event(e.body)
    yield replies.DONE


async def _gone(receive: Receive) -> None:
  """Returns once the client has closed the connection."""
  while (await receive())['type'] != 'http.disconnect':
    pass


async def while_there(request: Request, work: Awaitable[_T]) -> _T:
  """Waits for work, as long as the client does.

  Raises:
    ClientGoneError: the client has closed the connection; the work is
      cancelled.
  """
  running = asyncio.ensure_future(work)
  gone = asyncio.ensure_future(_gone(request.receive))
  try:
    await asyncio.wait({running, gone}, return_when='FIRST_COMPLETED')
    if not running.done():
      raise ClientGoneError
    return running.result()
  finally:
    for task in (running, gone):
      task.cancel()
    await asyncio.gather(running, gone, return_exceptions=True)


class EventStream(Response):
  """A stream of events; ends when the client has gone.

  Args:
    events: the events.
    held: closed at the end.
    seconds: longest time that sending may take.
  """

  def __init__(
    self,
    events: AsyncGenerator[bytes, None],
    held: contextlib.ExitStack,
    seconds: float,
  ):
    super().__init__(media_type='text/event-stream')
    del self.headers['content-length']
    self._events = events
    self._held = held
    self._seconds = seconds

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """See `Response`."""
    with self._held:
      sending = asyncio.ensure_future(self._send(send))
      gone = asyncio.ensure_future(_gone(receive))
      try:
        await asyncio.wait(
          {sending, gone}, timeout=self._seconds, return_when='FIRST_COMPLETED'
        )
        if sending.done():
          sending.result()
        else:
          # Or it does not read.
          scope['state']['noted']['gone'] = True
      finally:
        for task in (sending, gone):
          task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)

  async def _send(self, send: Send) -> None:
    await send(
      {
        'type': 'http.response.start',
        'status': self.status_code,
        'headers': self.raw_headers,
      }
    )
    async with contextlib.aclosing(self._events) as events:
      async for data in events:
        await send(
          {'type': 'http.response.body', 'body': data, 'more_body': True}
        )
    await send({'type': 'http.response.body', 'body': b'', 'more_body': False})
