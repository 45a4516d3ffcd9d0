"""A server that takes the requests of vtokens.vllm_client, without a model."""

import contextlib
import http.server
import json
import threading
from typing import ClassVar


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers as vLLM does, and notes the requests."""

  requests: ClassVar[list] = []
  status = 200
  answer = json.dumps(
    {'choices': [{'text': ' 1859', 'message': {'content': '1859'}}]}
  ).encode()

  def log_message(self, *_):
    pass

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    self.requests.append((self.path, dict(self.headers), body))
    refusal = b'{"error": "no prompt_embeds here"}'
    data = self.answer if self.status == 200 else refusal
    self.send_response(self.status)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)


@contextlib.contextmanager
def serve():
  """Gives the address of a server, and its handler.

  `handler.requests` has path, headers and body of each request; `status` and
  `answer` can be set.
  """
  handler = type('Handler', (_Handler,), {'requests': []})
  found = http.server.ThreadingHTTPServer(('localhost', 0), handler)
  threading.Thread(target=found.serve_forever, daemon=True).start()
  try:
    yield f'http://localhost:{found.server_port}', handler
  finally:
    found.shutdown()
    found.server_close()
