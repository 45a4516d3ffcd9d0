"""What all requests go through: key, host, headers, log, counters."""

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtokens.server import access
from vtokens.server.api_errors import ApiError
from vtokens.server.service import Service

# Answered without a key: they tell nothing of tables and questions.
_OPEN = frozenset(['/', '/page.css', '/page.js', '/health', '/ready'])
# Nothing is loaded from elsewhere, and no other page may frame or read this.
_HEADERS = {
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
}


class Front:
  """Lets requests through to the application.

  Args:
    app: the application.
    service: has the log and the counters.
    key: the API key, or an empty one.
    any_host: whether a request may name any host.
  """

  def __init__(
    self, app: ASGIApp, service: Service, key: access.Key, any_host: bool
  ):
    self._app = app
    self._service = service
    self._key = key
    self._any_host = any_host

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """See Starlette."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    began = time.monotonic()
    name = uuid.uuid4().hex
    noted: dict[str, Any] = {}
    scope.setdefault('state', {}).update(request_id=name, noted=noted)
    status = 0

    async def send_noted(message: Message) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        more = {**_HEADERS, 'X-Request-Id': name}
        own = {key.lower() for key, _ in message['headers']}
        message['headers'] = [
          *message['headers'],
          *(
            (key.encode(), value.encode())
            for key, value in more.items()
            if key.lower().encode() not in own
          ),
        ]
      await send(message)

    try:
      refusal = self._refusal(Request(scope))
      if refusal is None:
        await self._app(scope, receive, send_noted)
      else:
        response = JSONResponse(refusal.body, refusal.status, refusal.headers)
        await response(scope, receive, send_noted)
    finally:
      self._finish(scope, status, time.monotonic() - began, noted)

  def _refusal(self, request: Request) -> ApiError | None:
    host = request.headers.get('host', '')
    if not self._any_host and not access.names_loopback(host):
      return ApiError(
        421, f'the header Host: expected this machine, got {host[:200]!r}'
      )
    # The path that is routed. That of `request.url` may come from the header
    # Host, as in Starlette 1.0: `Host: x/health?` would need no key.
    if request.scope['path'] in _OPEN:
      return None
    if not self._key.admits(request.headers.get('authorization', '')):
      return ApiError(
        401,
        'expected the API key of this server in the header Authorization: '
        'Bearer KEY',
        code='invalid_api_key',
      )
    return None

  def _finish(
    self, scope: Scope, status: int, seconds: float, noted: dict[str, Any]
  ) -> None:
    route = scope.get('route')
    # Not the path itself: anybody could make up any number of them.
    path = getattr(route, 'path', 'other')
    counts = self._service.metrics
    counts.requests.labels(path, str(status)).inc()
    counts.seconds.labels(path).observe(seconds)
    self._service.log.write(
      'request',
      id=scope['state']['request_id'],
      method=scope['method'],
      path=path,
      status=status,
      seconds=round(seconds, 4),
      **noted,
    )
