"""Tests of vtokens.server.remote_backend with a llama.cpp server."""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import gguf_runs
import openai
import our_answers
import pytest
import served
import server_process

from vtokens.exports import trained_table
from vtokens.exports.gguf import gguf_file
from vtokens.host import errors
from vtokens.server import remote_backend, remote_tables
from vtokens.server.api_errors import ApiError
from vtokens.serving import artifact

_PROGRAM = pathlib.Path(__file__).parents[1] / 'support' / 'llama_program.py'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A base in GGUF, a run, and its export."""
  root = tmp_path_factory.mktemp('gguf')
  base = gguf_runs.save(
    root, 'llama_tied_q4_0', kind=gguf_runs.Type.F32, line_breaks=20.0
  )
  source = trained_table.read(str(root / 'run'))
  out = root / 'gguf'
  out.mkdir()
  plan = gguf_file.place(source.table, source.base, str(base))
  gguf_file.write(out / gguf_file.FILE, source.table, plan, str(base))
  meta = dataclasses.replace(source.table.meta, tokens=plan.tokens)
  artifact.write(out, artifact.Artifact(source.table.table, meta))
  return root


class _Llama:
  """A llama.cpp server that can be killed and started again."""

  def __init__(self, file, log):
    self.port = server_process.free_port()
    self.url = f'http://127.0.0.1:{self.port}'
    self._command = [sys.executable, _PROGRAM, file, str(self.port)]
    self._log = log

  def start(self):
    with self._log.open('a') as log:
      self._process = subprocess.Popen(
        self._command,
        env={**os.environ, 'OMP_WAIT_POLICY': 'passive'},
        stdout=log,
        stderr=log,
      )
    last = time.monotonic() + 60
    while True:
      with contextlib.suppress(OSError):
        with urllib.request.urlopen(f'{self.url}/health', timeout=5) as reply:
          if reply.status == 200:
            return
      assert self._process.poll() is None, self._log.read_text()
      assert time.monotonic() < last
      time.sleep(0.05)

  def kill(self):
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()


@pytest.fixture(scope='module')
def llama(place):
  found = _Llama(place / 'gguf' / 'model.gguf', place / 'llama.txt')
  found.start()
  yield found
  found.kill()


def _backend(url, directory):
  def make(metrics):
    del metrics
    reader = remote_tables.Reader('llama.cpp', url, '')
    backend = remote_backend.RemoteBackend(
      'llama.cpp', url, reader, model='', key=''
    )
    backend.load_now('t', str(directory))
    return backend

  return make


@pytest.fixture(scope='module')
def server(place, llama):
  with served.serving(_backend(llama.url, place / 'gguf')) as found:
    yield found


def _ask(client, one, **settings):
  return client.chat.completions.create(
    model='t',
    messages=[{'role': 'user', 'content': one.question}],
    max_tokens=16,
    extra_body={'passages': one.passages, 'k': 5},
    **settings,
  )


def _line(text):
  # llama.cpp leaves out the bytes of a character that is not whole.
  return text.strip().split('\n')[0].strip().rstrip('\ufffd')


def test_answers_are_ours(place, server):
  client = server.client()
  for one in our_answers.ask(place / 'run', 5):
    reply = _ask(client, one)
    assert _line(reply.choices[0].message.content) == _line(one.text)
    events = list(_ask(client, one, stream=True))
    parts = [e.choices[0].delta.content or '' for e in events if e.choices]
    assert _line(''.join(parts)) == _line(one.text)
    assert events[-1].choices[0].finish_reason in ('stop', 'length')


def test_a_bias_of_refusals_is_refused(place, server):
  one = our_answers.ask(place / 'run', 5)[0]
  with pytest.raises(openai.BadRequestError, match='refusal_bias: the backend'):
    server.client().chat.completions.create(
      model='t',
      messages=[{'role': 'user', 'content': one.question}],
      extra_body={'passages': one.passages, 'refusal_bias': 1.0},
    )


def test_the_base(server):
  client = server.client()
  text = client.completions.create(model='base', prompt='When', max_tokens=4)
  assert text.usage.completion_tokens == 4
  assert text.choices[0].finish_reason == 'length'
  chat = client.chat.completions.create(
    model='base',
    messages=[{'role': 'user', 'content': 'When?'}],
    max_tokens=4,
    logprobs=True,
    top_logprobs=2,
    extra_body={'passages': ['It was in 1859.']},
  )
  assert chat.model == 'base'
  for one in chat.choices[0].logprobs.content:
    assert one.top_logprobs[0].logprob == one.logprob <= 0
    assert len(one.top_logprobs) == 2


def test_the_backend_dies_and_comes_back(place, server, llama):
  client = server.client()
  [one, *_] = our_answers.ask(place / 'run', 5)
  assert client.get('/../ready', cast_to=dict)['status'] == 'ready'
  llama.kill()
  try:
    for settings in ({}, {'stream': True}):
      with pytest.raises(openai.InternalServerError) as caught:
        _ask(client, one, **settings)
      assert caught.value.status_code == 502
      assert 'cannot be used' in caught.value.message
    with pytest.raises(openai.InternalServerError) as caught:
      client.get('/../ready', cast_to=dict)
    assert caught.value.status_code == 503
  finally:
    llama.start()
  again = _ask(client, one).choices[0].message.content
  assert _line(again) == _line(one.text)


def test_one_table_alone(place):
  reader = remote_tables.Reader('llama.cpp', 'http://127.0.0.1:1', '')
  with pytest.raises(errors.UserError, match=r'table a: .*--to gguf'):
    reader.read('a', str(place / 'run'))


def test_the_second_of_two_unloads_finds_no_table(place):
  backend = _backend('http://127.0.0.1:1', place / 'gguf')(None)

  async def unload_twice():
    try:
      return await asyncio.gather(
        *(backend.unload('t') for _ in range(2)), return_exceptions=True
      )
    finally:
      await backend.close()

  first, second = asyncio.run(unload_twice())
  assert first is None
  assert isinstance(second, ApiError) and second.status == 404
  assert not backend.tables
