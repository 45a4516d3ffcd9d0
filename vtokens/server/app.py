"""The addresses of the server."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vtokens.host import errors
from vtokens.server import access, metrics, page, replies, schemas, streaming
from vtokens.server.api_errors import (
  ApiError,
  ClientGoneError,
  name_taken,
  no_table,
)
from vtokens.server.front import Front
from vtokens.server.questions import BASE, Table
from vtokens.server.service import Asked, Service

# Seconds for the end of a stream, after the time limit of its answer.
_TO_READ = 5.0
# The client has closed the connection; nginx logs this status, too.
_GONE = 499


def make(service: Service, key: access.Key, *, any_host: bool) -> ASGIApp:
  """Makes the application.

  Args:
    service: answers requests.
    key: the API key, or an empty one.
    any_host: whether a request may name any host. False for a server without
      a key on a loopback address.
  """
  handlers = _Handlers(service, key)
  app = Starlette(
    routes=[
      *(
        Route(path, page.response(name), methods=['GET'])
        for path, name in page.FILES.items()
      ),
      Route('/health', handlers.health, methods=['GET']),
      Route('/ready', handlers.ready, methods=['GET']),
      Route('/metrics', handlers.metrics, methods=['GET']),
      Route('/v1/models', handlers.models, methods=['GET']),
      # A name may have slashes.
      Route('/v1/models/{name:path}', handlers.model, methods=['GET']),
      Route('/v1/chat/completions', handlers.chat, methods=['POST']),
      Route('/v1/completions', handlers.completion, methods=['POST']),
      Route('/v1/search', handlers.search, methods=['POST']),
      Route('/v1/tables', handlers.load, methods=['POST']),
      Route('/v1/tables/{name:path}', handlers.unload, methods=['DELETE']),
    ],
    exception_handlers={
      ApiError: _api_error,
      HTTPException: _http_error,
      errors.UserError: _user_error,
      ClientGoneError: _gone_error,
      Exception: _crash,
    },
  )
  return Front(app, service, key, any_host)


def _api_error(request: Request, error: Any) -> Response:
  del request
  return JSONResponse(error.body, error.status, error.headers)


def _http_error(request: Request, error: Any) -> Response:
  """An address that is not there, or has another method."""
  message = f'{request.method} {request.url.path[:200]}: {error.detail}'
  found = ApiError(error.status_code, message)
  return JSONResponse(found.body, found.status, error.headers)


def _user_error(request: Request, error: Any) -> Response:
  del request
  return JSONResponse(ApiError(400, str(error)).body, 400)


def _gone_error(request: Request, error: Any) -> Response:
  """Nobody reads this; the status is for the log."""
  del error
  request.state.noted['gone'] = True
  return Response(status_code=_GONE)


def _crash(request: Request, error: Any) -> Response:
  """A mistake of this program; the server prints its traceback."""
  request.state.noted['error'] = errors.shorten(repr(error))
  found = ApiError(500, 'a mistake of this server; see its log')
  return JSONResponse(found.body, found.status)


class _Handlers:
  """Answers requests; see `make`."""

  def __init__(self, service: Service, key: access.Key):
    self._service = service
    self._key = key

  async def health(self, request: Request) -> Response:
    """The process lives."""
    del request
    return JSONResponse({'status': 'ok'})

  async def ready(self, request: Request) -> Response:
    """Whether questions can be answered now."""
    del request
    problem = 'the server is ending'
    if not self._service.gate.closed:
      problem = await self._service.backend.problem()
    if problem:
      return JSONResponse({'status': 'not ready', 'why': problem}, 503)
    return JSONResponse({'status': 'ready'})

  async def metrics(self, request: Request) -> Response:
    """Counters for Prometheus."""
    del request
    service = self._service
    service.metrics.inside.set(service.gate.inside)
    service.metrics.tables.set(len(service.backend.tables))
    return Response(
      service.metrics.text(), headers={'Content-Type': metrics.CONTENT_TYPE}
    )

  async def models(self, request: Request) -> Response:
    """The tables and the base."""
    del request
    tables = {**self._service.backend.tables, BASE: None}
    described = [self._described(*item) for item in tables.items()]
    return JSONResponse({'object': 'list', 'data': described})

  async def model(self, request: Request) -> Response:
    """One of them."""
    name = request.path_params['name']
    table = self._service.backend.tables.get(name)
    if name != BASE and table is None:
      raise no_table(name)
    return JSONResponse(self._described(name, table))

  def _described(self, name: str, table: Table | None) -> dict[str, Any]:
    """A model of the API; the base has no table."""
    return {
      'id': name,
      'object': 'model',
      'created': table.created if table else 0,
      'owned_by': 'vtokens',
      'vtokens': {
        'k': table.num_trained if table else 0,
        'max_tokens': self._service.limits.max_tokens,
        'index': self._service.has_index,
      },
    }

  async def chat(self, request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await self._answer(request, schemas.ChatRequest, replies.ChatReply)

  async def completion(self, request: Request) -> Response:
    """POST /v1/completions."""
    return await self._answer(request, schemas.TextRequest, replies.TextReply)

  async def search(self, request: Request) -> Response:
    """Passages for a question."""
    body = schemas.parse(schemas.SearchRequest, await self._body(request))
    with self._service.gate.enter():
      found = await self._service.search(body.query, body.num_passages)
    return JSONResponse(
      {'object': 'list', 'passages': [one.model_dump() for one in found]}
    )

  async def load(self, request: Request) -> Response:
    """Adds a table."""
    self._check_admin()
    body = schemas.parse(schemas.TableRequest, await self._body(request))
    if body.name in (BASE, *self._service.backend.tables):
      raise name_taken(body.name)
    table = await self._service.backend.load(body.name, body.directory)
    self._service.log.write('table_loaded', table=body.name)
    return JSONResponse(self._described(body.name, table), 201)

  async def unload(self, request: Request) -> Response:
    """Removes a table."""
    self._check_admin()
    name = request.path_params['name']
    await self._service.backend.unload(name)
    self._service.log.write('table_unloaded', table=name)
    return JSONResponse({'id': name, 'object': 'model', 'deleted': True})

  def _check_admin(self) -> None:
    """Directories of this machine are read for those with a key alone."""
    if not self._key:
      raise ApiError(
        403,
        'tables are loaded and unloaded only where the server has an API key '
        f'(--key_file FILE or {access.VARIABLE})',
        code='no_key',
      )

  async def _body(self, request: Request) -> bytes:
    """The body of a request.

    Raises:
      ApiError: it is too long (413), not said to be JSON (415), or comes too
        slowly (408).
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip()
    if kind.lower() != 'application/json':
      # A browser lets other sites send any other type without asking.
      raise ApiError(415, 'expected the header Content-Type: application/json')
    most = self._service.limits.body_bytes
    too_long = ApiError(
      413, f'the body: expected at most {most:,} bytes', code='too_large'
    )
    said = request.headers.get('content-length', '0')
    if said.isdecimal() and int(said[:20]) > most:
      raise too_long
    data = bytearray()
    seconds = self._service.limits.seconds
    try:
      async with asyncio.timeout(seconds):
        async for part in request.stream():
          data += part
          if len(data) > most:
            raise too_long
    except TimeoutError:
      raise ApiError(
        408, f'the body: it was not whole within {seconds:g} seconds'
      ) from None
    except ClientDisconnect:
      raise ClientGoneError from None
    return bytes(data)

  async def _answer(
    self,
    request: Request,
    kind: type[schemas.ChatRequest] | type[schemas.TextRequest],
    shape: Callable[..., replies.Shape],
  ) -> Response:
    service = self._service
    body = schemas.parse(kind, await self._body(request))
    with contextlib.ExitStack() as stack:
      stack.enter_context(service.gate.enter())
      asked = await streaming.while_there(
        request, service.ask(body, request.state.request_id)
      )
      self._note(request, asked)
      reply = shape(asked.question, asked.model, asked.found)
      if not body.stream:
        answer = await streaming.while_there(request, service.whole(asked))
        return JSONResponse(reply.whole(answer))
      pieces = service.pieces(asked)
      try:
        first = await streaming.while_there(request, anext(pieces))
      except BaseException:
        await pieces.aclose()
        raise
      return streaming.EventStream(
        streaming.events(
          reply, first, pieces, with_usage=body.stream_options.include_usage
        ),
        # The question is answered until the stream ends.
        stack.pop_all(),
        # Also for a client that does not read.
        service.limits.seconds + _TO_READ,
      )

  def _note(self, request: Request, asked: Asked) -> None:
    """Adds to the event that `Front` writes."""
    question = asked.question
    noted = request.state.noted
    noted.update(
      model=question.table,
      k=question.k,
      passages=len(question.passages),
      max_tokens=question.sampling.max_tokens,
    )
    if self._service.log.texts:
      noted['question'] = question.text
