"""Runs the application until a signal ends it."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from vtokens.host import errors
from vtokens.server.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds between two looks at the running requests.
_PAUSE = 0.05
# Seconds that connections have to close at the end.
_TO_CLOSE = 2


def listen(host: str, port: int) -> socket.socket:
  """Opens a socket.

  Args:
    host: address or name.
    port: number; 0 for any free one.

  Raises:
    errors.UserError: it cannot be had.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  opened = socket.socket(family)
  opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    opened.bind((host, port))
  except OSError as e:
    opened.close()
    raise errors.UserError(
      f'--host={host} --port={port}: cannot listen there: '
      f'{os.strerror(e.errno) if e.errno and e.errno > 0 else e}'
    ) from None
  return opened


class _Server(uvicorn.Server):
  """Ends in steps: refuses new requests, finishes running ones, then closes."""

  def __init__(self, settings: uvicorn.Config, service: Service):
    super().__init__(settings)
    self._service = service
    self._draining: asyncio.Task[None] | None = None

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """See uvicorn, which would close at once."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
      loop.add_signal_handler(number, self._on_signal, number)
    try:
      yield
    finally:
      for number, handler in before.items():
        loop.remove_signal_handler(number)
        signal.signal(number, handler)

  def _on_signal(self, number: int) -> None:
    name = signal.Signals(number).name
    gate = self._service.gate
    if gate.closed:
      self._service.log.write('ended_at_once', signal=name)
      # The thread of answers may compile for long.
      os._exit(128 + number)
    gate.closed = True
    self._service.log.write('ending', signal=name, running=gate.inside)
    self._draining = asyncio.get_running_loop().create_task(self._drain())

  async def _drain(self) -> None:
    limits, gate = self._service.limits, self._service.gate
    waited = 0.0
    while gate.inside and waited < limits.drain_seconds:
      await asyncio.sleep(_PAUSE)
      waited += _PAUSE
    if gate.inside:
      self._service.log.write('not_finished', running=gate.inside)
    self.should_exit = True


def run(app: ASGIApp, service: Service, opened: socket.socket) -> None:
  """Serves until SIGTERM or Ctrl-C, then finishes running requests.

  A second signal ends the server at once.

  Args:
    app: the application.
    service: what answers its requests.
    opened: a bound socket.
  """
  settings = uvicorn.Config(
    app,
    # No line for each request: the application logs them itself.
    access_log=False,
    log_level='warning',
    lifespan='off',
    server_header=False,
    timeout_graceful_shutdown=_TO_CLOSE,
    http='h11',
    ws='none',
    loop='asyncio',
  )
  server = _Server(settings, service)

  async def serve() -> None:
    host, port = opened.getsockname()[:2]
    host = f'[{host}]' if ':' in host else host
    service.log.write('listening', url=f'http://{host}:{port}', pid=os.getpid())
    try:
      await server.serve([opened])
    finally:
      await service.backend.close()
    service.log.write('ended')

  asyncio.run(serve())
