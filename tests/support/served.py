"""A server of `vtokens.server` in a thread of this process."""

import asyncio
import contextlib
import io
import json
import threading
import time

import openai
import uvicorn

from vtokens.server import access, app, running, service
from vtokens.server.json_log import JsonLog
from vtokens.server.limits import Limits
from vtokens.server.metrics import Metrics


class Served:
  """A running server.

  Attributes:
    url: its address.
    service: what answers.
    log: gets its log.
  """

  def __init__(self, url, service, log, key):
    self.url = url
    self.service = service
    self.log = log
    self._key = key

  def client(self, **settings):
    """OpenAI's client of it, which tries once."""
    return openai.OpenAI(
      **{
        'base_url': f'{self.url}/v1',
        'api_key': self._key or 'unused',
        'max_retries': 0,
        'timeout': 120,
        **settings,
      }
    )

  def events(self):
    """What the log has."""
    return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextlib.contextmanager
def serving(make_backend, *, key='', limits=None, texts=False, **settings):
  """Serves until the block ends.

  Args:
    make_backend: makes the backend, given the counters; called in the loop.
    key: API key.
    limits: of the server.
    texts: whether the log has questions.
    **settings: of `service.Service`.
  """
  log, metrics = io.StringIO(), Metrics()
  opened = running.listen('127.0.0.1', 0)
  ready, found = threading.Event(), {}

  async def serve():
    backend = make_backend(metrics)
    made = service.Service(
      backend,
      limits or Limits(),
      log=JsonLog(log, texts=texts),
      metrics=metrics,
      **settings,
    )
    application = app.make(made, access.Key(key), any_host=bool(key))
    server = uvicorn.Server(
      uvicorn.Config(
        application, log_level='warning', lifespan='off', access_log=False
      )
    )
    found.update(service=made, server=server)
    ready.set()
    await server.serve([opened])
    await backend.close()

  thread = threading.Thread(target=lambda: asyncio.run(serve()))
  thread.start()
  try:
    assert ready.wait(60)
    last = time.monotonic() + 60
    while not found['server'].started:
      assert time.monotonic() < last
      time.sleep(0.001)
    url = f'http://127.0.0.1:{opened.getsockname()[1]}'
    yield Served(url, found['service'], log, key)
  finally:
    found['server'].should_exit = True
    thread.join(60)
    opened.close()
    assert not thread.is_alive()
