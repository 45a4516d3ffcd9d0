"""The page at `/`: three files, of which nothing is loaded from elsewhere."""

import importlib.resources
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

# Address: file.
FILES: Mapping[str, str] = {
  '/': 'page.html',
  '/page.css': 'page.css',
  '/page.js': 'page.js',
}
_TYPES = {
  'html': 'text/html; charset=utf-8',
  'css': 'text/css; charset=utf-8',
  'js': 'text/javascript; charset=utf-8',
}
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'; require-trusted-types-for 'script'"
)


def response(name: str) -> Callable[[Request], Awaitable[Response]]:
  """Makes the handler of a file."""
  folder = importlib.resources.files('vtokens.server')
  content = (folder / name).read_bytes()
  headers = {
    'Content-Type': _TYPES[name.rpartition('.')[2]],
    'Content-Security-Policy': _POLICY,
  }

  async def handler(request: Request) -> Response:
    del request
    return Response(content, headers=headers)

  return handler
