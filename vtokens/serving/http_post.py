"""A POST of JSON to a server that is not trusted. Needs no JAX.

The request carries an API key, so it goes to the given address alone: redirects
are not followed. The reply has a largest size, and all of the exchange, from
the look-up of the host to the last byte, a time limit: a timeout of a socket is
one of each read, which a server that sends byte by byte never exceeds.
"""

import contextlib
import http.client
import json
import math
import queue
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from vtokens.host import errors

# Bytes of a reply: a thousand times an ordinary one.
MAX_REPLY = 16 << 20
_MAX_SECONDS = 1_000_000
_THREAD = 'http_post'
# Bytes of a refusal that are read.
_MAX_REFUSAL = 1200


def check_url(url: Any) -> str:
  """The URL of a server, without a slash at its end.

  Raises:
    errors.UserError: it is no http(s) URL of a host alone, maybe with a path.
  """
  # Not shown where it may hold a password.
  shown = '' if '@' in str(url) else f', got {errors.shorten(repr(url))}'
  bad = errors.UserError(
    'url: expected http://HOST[:PORT] or https://HOST[:PORT], maybe with a '
    f'path, without user, ? or #{shown}'
  )
  if not isinstance(url, str) or not url.isprintable() or ' ' in url:
    raise bad
  try:
    parts = urllib.parse.urlsplit(url)
    parts.port  # noqa: B018 (looks at it)
  except ValueError:
    raise bad from None
  if (
    parts.scheme not in ('http', 'https')
    or not parts.hostname
    or any(c in url for c in '@?#\\')
  ):
    raise bad
  return url.rstrip('/')


def check_key(key: Any) -> str:
  """An API key as a header can hold it.

  Raises:
    errors.UserError: it cannot; the message does not show it.
  """
  if isinstance(key, str) and key.isascii() and key.isprintable():
    return key
  raise errors.UserError(
    'key: expected a text of printable ASCII characters, without a line break '
    'at its end'
  )


def check_timeout(seconds: Any) -> float:
  """A time limit.

  Raises:
    errors.UserError: it is none.
  """
  number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
  if number and math.isfinite(seconds) and 0 < seconds <= _MAX_SECONDS:
    return float(seconds)
  raise errors.UserError(
    f'timeout: expected seconds, above 0 and at most {_MAX_SECONDS:,}, got '
    f'{seconds!r}'
  )


def post(url: str, body: Mapping[str, Any], key: str, timeout: float) -> bytes:
  """What a server replies.

  Args:
    url: see `check_url`.
    body: JSON values.
    key: see `check_key`; '' for none.
    timeout: seconds for all of it.

  Raises:
    errors.UserError: the body is no JSON; the server cannot be reached, takes
      too long, refuses, redirects, or its reply is longer than `MAX_REPLY`.
  """
  try:
    data = json.dumps(body, allow_nan=False).encode()
  except (TypeError, ValueError, RecursionError) as e:
    raise errors.UserError(
      f'the request cannot be written as JSON ({e}); settings have to be '
      'numbers, texts, lists and dicts'
    ) from None
  headers = {'Content-Type': 'application/json'}
  if key:
    headers['Authorization'] = f'Bearer {key}'
  request = urllib.request.Request(url, data, headers)
  sockets = _Sockets()
  opener = urllib.request.build_opener(
    _NoRedirects, _Http(sockets), _Https(sockets)
  )
  found: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

  def work() -> None:
    try:
      found.put(_exchange(opener, request, timeout))
    except BaseException as e:
      found.put(e)

  # In a thread of its own, since a look-up of a host cannot be interrupted.
  threading.Thread(target=work, name=_THREAD, daemon=True).start()
  try:
    result = found.get(timeout=timeout)
  except queue.Empty:
    raise errors.UserError(
      f'{url}: no whole answer within {timeout:g} seconds (timeout)'
    ) from None
  finally:
    # Ends a thread that still reads.
    sockets.shut()
  if isinstance(result, BaseException):
    raise result
  return result


def _exchange(
  opener: urllib.request.OpenerDirector,
  request: urllib.request.Request,
  timeout: float,
) -> bytes:
  url = request.full_url
  try:
    with opener.open(request, timeout=timeout) as answer:
      reply: bytes = answer.read(MAX_REPLY + 1)
  except urllib.error.HTTPError as e:
    with e:
      raise errors.UserError(f'{url}: {e.code}: {_refusal(e)}') from None
  except urllib.error.URLError as e:
    raise errors.UserError(f'{url}: {errors.shorten(str(e.reason))}') from None
  # Whatever breaks while the answer is read; a host that cannot be encoded.
  except (http.client.HTTPException, OSError, ValueError) as e:
    text = errors.shorten(str(e)) or type(e).__name__
    raise errors.UserError(f'{url}: {text}') from None
  if len(reply) > MAX_REPLY:
    raise errors.UserError(
      f'{url}: the answer is longer than {MAX_REPLY:,} bytes'
    )
  return reply


def _refusal(error: urllib.error.HTTPError) -> str:
  if 300 <= error.code < 400:
    target = errors.shorten(str(error.headers.get('Location', 'nowhere')))
    return (
      f'the server redirects to {target}, which is not followed, since the '
      'request holds the API key; give the URL of the server itself'
    )
  try:
    return errors.shorten(error.read(_MAX_REFUSAL).decode(errors='replace'))
  except (http.client.HTTPException, OSError):
    return 'without an explanation'


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Leaves a redirect to be raised as the error that it is here."""

  def http_error_302(
    self, req: Any, fp: Any, code: Any, msg: Any, headers: Any
  ) -> None:
    return None

  http_error_301 = http_error_303 = http_error_302
  http_error_307 = http_error_308 = http_error_302


class _Sockets:
  """The sockets of an exchange, which another thread can end."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._all: list[socket.socket] = []
    self._ended = False

  def add(self, one: socket.socket) -> None:
    """Notes a socket.

    Raises:
      TimeoutError: the exchange was ended before it was connected.
    """
    with self._lock:
      if self._ended:
        one.close()
        raise TimeoutError
      self._all.append(one)

  def shut(self) -> None:
    """Makes all that wait for a socket return."""
    with self._lock:
      self._ended = True
      for one in self._all:
        # It may be closed by now.
        with contextlib.suppress(OSError, ValueError):
          one.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
  """Notes the sockets that it opens."""

  def __init__(self, sockets: _Sockets):
    super().__init__()
    self._connection = _noting(http.client.HTTPConnection, sockets)

  def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
    return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
  """Likewise."""

  def __init__(self, sockets: _Sockets):
    super().__init__()
    self._connection = _noting(http.client.HTTPSConnection, sockets)

  def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
    return self.do_open(self._connection, req)


def _noting(base: Any, sockets: _Sockets) -> Any:
  class Connection(base):
    """One whose socket is noted as soon as it is connected."""

    def connect(self) -> None:
      super().connect()
      sockets.add(self.sock)

  return Connection
