"""Tests of vtokens.serving.http_post, against servers on real sockets."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from vtokens.host import errors
from vtokens.serving import http_post

REPLY = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'


@contextlib.contextmanager
def _serving(handle):
  """A server whose connections a function of the socket answers."""
  listening = socket.create_server(('localhost', 0))

  def serve():
    with contextlib.suppress(OSError):
      while True:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
          handle(connection)

  thread = threading.Thread(target=serve, daemon=True)
  thread.start()
  try:
    yield f'http://localhost:{listening.getsockname()[1]}/v1'
  finally:
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def _request(connection) -> bytes:
  """Head and body of a request."""
  data = b''
  while not data.endswith(b'{"a": 1}'):
    data += connection.recv(1 << 16)
  return data


def _post(url, key='', timeout=20.0):
  return http_post.post(url, {'a': 1}, key, timeout)


def test_a_reply():
  seen = []

  def handle(connection):
    seen.append(_request(connection))
    connection.sendall(REPLY + b'Content-Length: 2\r\n\r\n{}')

  with _serving(handle) as url:
    assert _post(url, key='secret') == b'{}'
  assert b'\r\nAuthorization: Bearer secret\r\n' in seen[0]


@pytest.mark.parametrize('code', [301, 302, 303, 307, 308])
def test_the_key_is_not_sent_on(code):
  """Neither to another port nor to another path of the same server."""
  seen = []

  class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      seen.append((self.path, dict(self.headers)))
      self.send_response(200)
      self.end_headers()

    do_POST = do_GET

  other = http.server.ThreadingHTTPServer(('localhost', 0), Other)
  threading.Thread(target=other.serve_forever, daemon=True).start()
  target = f'http://localhost:{other.server_port}/v1'
  for location in (
    target,
    '/elsewhere',
    'http://[broken',
    'file:///etc/passwd',
  ):
    asked = []

    def handle(connection, location=location, asked=asked):
      asked.append(_request(connection))
      connection.sendall(
        f'HTTP/1.1 {code} Moved\r\nLocation: {location}\r\n'
        'Content-Length: 0\r\nConnection: close\r\n\r\n'.encode()
      )

    with _serving(handle) as url:
      with pytest.raises(errors.UserError, match=r'redirects to .* not follow'):
        _post(url, key='secret')
    assert len(asked) == 1
  assert not seen
  other.shutdown()
  other.server_close()


@pytest.mark.parametrize(
  'start, byte',
  [
    (b'', b''),
    (REPLY + b'X-Long: ', b'x'),
    (b'', b'HTTP/1.1 100 Continue\r\n\r\n'),
    (REPLY + b'Content-Length: 1000000\r\n\r\n', b' '),
    (REPLY + b'Transfer-Encoding: chunked\r\n\r\n', b'1\r\n \r\n'),
    (b'HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n', b'x'),
  ],
)
def test_a_server_that_drips(start, byte):
  """Each read is quick, the whole has no end."""
  ended = threading.Event()

  def handle(connection):
    try:
      _request(connection)
      connection.sendall(start)
      while True:
        if byte:
          connection.sendall(byte)
        elif connection.recv(1) == b'':
          return
        time.sleep(0.05)
    finally:
      ended.set()

  with _serving(handle) as url:
    begin = time.monotonic()
    with pytest.raises(errors.UserError, match=r'0.5 seconds|timed out'):
      _post(url, timeout=0.5)
    assert time.monotonic() - begin < 5
    # The connection is given up, and the thread that reads it with it.
    assert ended.wait(10)
  readers = [t for t in threading.enumerate() if t.name == 'http_post']
  for thread in readers:
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize('length', [True, False])
def test_a_reply_without_end(length):
  def handle(connection):
    _request(connection)
    head = b'Content-Length: 100000000000\r\n' * length
    connection.sendall(REPLY + head + b'\r\n')
    while True:
      connection.sendall(b' ' * (1 << 20))

  with _serving(handle) as url:
    with pytest.raises(errors.UserError, match=r'longer than 16,777,216 bytes'):
      _post(url)


def test_a_refusal_is_shown_in_short():
  text = b'\x1b[31mno such model\n\xff' + b'x' * 1_000_000

  def handle(connection):
    _request(connection)
    connection.sendall(b'HTTP/1.1 404 No\r\n\r\n' + text)

  with _serving(handle) as url:
    with pytest.raises(errors.UserError) as e:
      _post(url)
  assert str(e.value).startswith(
    f'{url}: 404: \\x1b[31mno such model\\n\ufffdxx'
  )
  assert len(str(e.value)) < 500


@pytest.mark.parametrize(
  'reply',
  [b'', b'nonsense\r\n\r\n', b'HTTP/1.1 200 OK\r\nX: ' + b'x' * 100_000],
)
def test_a_reply_that_is_not_http(reply):
  def handle(connection):
    _request(connection)
    connection.sendall(reply)

  with _serving(handle) as url:
    with pytest.raises(errors.UserError, match='localhost'):
      _post(url)


@pytest.mark.parametrize(
  'url',
  ['http://localhost:1', 'http://' + 'a' * 70, 'http://a..b', 'http://ü/ü'],
)
def test_a_server_that_is_not_there(url):
  with pytest.raises(errors.UserError, match=r'^http://'):
    _post(http_post.check_url(url))


def test_tls_to_a_server_that_speaks_none():
  def handle(connection):
    connection.recv(1 << 16)
    connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')

  with _serving(handle) as url:
    with pytest.raises(errors.UserError, match=r'SSL|TLS|EOF'):
      _post(url.replace('http:', 'https:'))


def test_urls_as_they_are_used():
  for url in (
    'http://a',
    'https://a.b:8000/',
    'http://[::1]:80',
    'http://a/b/',
  ):
    assert http_post.check_url(url) == url.rstrip('/')
