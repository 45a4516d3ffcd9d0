"""A store of objects on this machine that speaks Google Cloud Storage.

As much of the JSON API as gcsfs, TensorStore and Google's client ask for:
https://cloud.google.com/storage/docs/json_api/v1. Preconditions hold as there,
and an object is seen once it is whole.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator

BUCKET = 'bucket'
_OBJECTS = f'/storage/v1/b/{BUCKET}/o'
_UPLOAD = f'/upload{_OBJECTS}'


class _Bucket:
  """Objects by name: generation and content.

  Attributes:
    refuses: every request, with this status; 0 if it does not.
  """

  refuses = 0

  def __init__(self):
    self.objects: dict[str, tuple[int, bytes]] = {}
    self.generation = 0
    # Uploads that are under way: name and content so far.
    self.uploads: dict[str, tuple[str, bytes]] = {}
    self.lock = threading.Lock()

  def put(self, name: str, data: bytes) -> dict:
    self.generation += 1
    self.objects[name] = self.generation, data
    return self.describe(name)

  def describe(self, name: str) -> dict:
    generation, data = self.objects[name]
    return {
      'kind': 'storage#object',
      'bucket': BUCKET,
      'name': name,
      'generation': str(generation),
      'metageneration': '1',
      'size': str(len(data)),
      'contentType': 'application/octet-stream',
      'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'updated': '2026-01-01T00:00:00.000Z',
    }

  def list(self, query: dict[str, str]) -> dict:
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    first, end = query.get('startOffset', ''), query.get('endOffset')
    items, prefixes = [], set()
    for name in sorted(self.objects):
      if not name.startswith(prefix) or name < first or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self.describe(name))
    return {
      'kind': 'storage#objects',
      'items': items,
      'prefixes': sorted(prefixes),
    }


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True

  @property
  def bucket(self) -> _Bucket:
    return _bucket

  def log_message(self, *_):
    pass

  def _handle(self):
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query))
    body = self._body()
    path = url.path.removeprefix('/download').rstrip('/')
    with self.bucket.lock:
      if self.bucket.refuses:
        self._fail(self.bucket.refuses)
      elif path == f'/storage/v1/b/{BUCKET}':
        self._json({'kind': 'storage#bucket', 'name': BUCKET})
      elif path == _UPLOAD and 'upload_id' in self.query:
        self._upload_more(body)
      elif path == _UPLOAD and self.query['uploadType'] == 'resumable':
        self._begin_upload(body)
      elif path == _UPLOAD:
        self._upload(body)
      elif path == _OBJECTS and self.command == 'GET':
        self._json(self.bucket.list(self.query))
      elif path.startswith(f'{_OBJECTS}/'):
        self._object(urllib.parse.unquote(path.removeprefix(f'{_OBJECTS}/')))
      else:
        self._fail(404)

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _upload(self, body: bytes):
    if self.query['uploadType'] == 'multipart':
      # --boundary, JSON with the name, --boundary, content, --boundary--.
      boundary = self.headers.get_param('boundary') or self.headers[
        'Content-Type'
      ].split('boundary=')[1].strip('"\'')
      _, about, rest = body.split(b'--' + boundary.encode(), 2)
      content = rest[: rest.rindex(b'--' + boundary.encode())]
      name = json.loads(_after_head(about))['name']
      body = _after_head(content).removesuffix(b'\n').removesuffix(b'\r')
    else:
      name = self.query['name']
    if self._holds(name):
      self._json(self.bucket.put(name, body))

  def _body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length', 0)))
    body = b''
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _begin_upload(self, body: bytes):
    number = str(len(self.bucket.uploads))
    self.bucket.uploads[number] = json.loads(body)['name'], b''
    host = self.headers['Host']
    location = f'http://{host}{_UPLOAD}?uploadType=resumable&upload_id={number}'
    self._send(200, b'', {'Location': location})

  def _upload_more(self, body: bytes):
    name, data = self.bucket.uploads[self.query['upload_id']]
    # bytes FIRST-LAST/TOTAL, or TOTAL is *: not known yet.
    total = self.headers['Content-Range'].rpartition('/')[2]
    data += body
    self.bucket.uploads[self.query['upload_id']] = name, data
    if total == str(len(data)):
      self._json(self.bucket.put(name, data))
    else:
      self._send(308, b'', {'Range': f'bytes=0-{len(data) - 1}'})

  def _object(self, name: str):
    if not self._holds(name):
      return
    if name not in self.bucket.objects:
      self._fail(404)
    elif self.command == 'DELETE':
      del self.bucket.objects[name]
      self._send(204, b'')
    elif self.query.get('alt') == 'media':
      self._content(*self.bucket.objects[name])
    else:
      self._json(self.bucket.describe(name))

  def _holds(self, name: str) -> bool:
    """Whether the preconditions hold; answers if not."""
    generation = self.bucket.objects.get(name, (0, b''))[0]
    match = self.query.get('ifGenerationMatch')
    unless = self.query.get('ifGenerationNotMatch')
    if match is not None and int(match) != generation:
      self._fail(412)
      return False
    if unless is not None and int(unless) == generation:
      self._send(304, b'')
      return False
    return True

  def _content(self, generation: int, data: bytes):
    headers = {'x-goog-generation': str(generation)}
    wanted = self.headers.get('Range')
    if wanted is None:
      self._send(200, data, headers)
      return
    first, _, last = wanted.removeprefix('bytes=').partition('-')
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
      self._fail(416)
      return
    headers['Content-Range'] = f'bytes {start}-{end - 1}/{len(data)}'
    self._send(206, data[start:end], headers)

  def _json(self, value: dict):
    headers = {'Content-Type': 'application/json'}
    self._send(200, json.dumps(value).encode(), headers)

  def _fail(self, status: int):
    message = self.responses[status][0]
    error = {'error': {'code': status, 'message': message}}
    self._send(status, json.dumps(error).encode())

  def _send(self, status: int, data: bytes, headers: dict | None = None):
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(data)))
    # Clients break off what they need no more.
    with contextlib.suppress(ConnectionError):
      self.end_headers()
      self.wfile.write(data)


def _after_head(part: bytes) -> bytes:
  """What follows the empty line of a part."""
  return part.replace(b'\r\n\r\n', b'\n\n', 1).split(b'\n\n', 1)[1]


class _Server(http.server.ThreadingHTTPServer):
  def handle_error(self, request, client_address):
    # Clients leave connections open, and end.
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


_bucket = _Bucket()


def put(name: str, data: bytes) -> None:
  """Puts an object into the bucket, whatever its name."""
  _bucket.put(name, data)


@contextlib.contextmanager
def refusing(status: int) -> Iterator[None]:
  """Meanwhile, all requests have this status."""
  _bucket.refuses = status
  try:
    yield
  finally:
    _bucket.refuses = 0


@contextlib.contextmanager
def serve() -> Iterator[str]:
  """The bucket, for this process and those it starts meanwhile.

  Yields:
    `gs://BUCKET`.
  """
  server = _Server(('localhost', 0), _Handler)
  url = f'http://localhost:{server.server_port}'
  env = {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    # Kinds of buckets whose other APIs this does not speak.
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    # Instead of a search for credentials on this machine and around it.
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
    'NO_GCE_CHECK': 'true',
  }
  threading.Thread(target=server.serve_forever, daemon=True).start()
  os.environ.update(env)
  try:
    yield f'gs://{BUCKET}'
  finally:
    for name in env:
      del os.environ[name]
    server.shutdown()
    server.server_close()
