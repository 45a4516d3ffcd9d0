"""Tests of the program vtokens.serve."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
import tiny_service

from vtokens.server import access

_ROOT = pathlib.Path(__file__).parents[1]
QUESTION = 'When was it completed?'


def _command(*arguments):
  return [sys.executable, '-m', 'vtokens.serve', *arguments]


def _environment(**more):
  found = {**os.environ, 'PYTHONPATH': str(_ROOT), **more}
  if access.VARIABLE not in more:
    found.pop(access.VARIABLE, None)
  return found


@pytest.fixture(scope='module')
def taken():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    found.listen()
    yield str(found.getsockname()[1])


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], '--workdir or --table NAME=DIR is needed'),
    (['--host=0.0.0.0'], '--host=0.0.0.0: other machines could use'),
    (['--table=a=x', '--table=a=y'], "--table=a=y: the name 'a' is taken"),
    (
      ['--backend=openai', '--backend_url=http://x', '--workdir=w'],
      'vtokens export --to hf',
    ),
    (['--workdir=w', '--port=TAKEN'], 'cannot listen there: Address already'),
  ],
)
def test_mistakes(arguments, message, taken, tmp_path):
  arguments = [one.replace('TAKEN', taken) for one in arguments]
  if not any(one.startswith('--port') for one in arguments):
    arguments.append('--port=0')
  done = subprocess.run(
    _command(*arguments),
    env=_environment(),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr and done.stdout == ''


class _Program:
  """The program while it runs; its output comes line by line."""

  def __init__(self, arguments, environment):
    self.process = subprocess.Popen(
      _command(*arguments),
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self.lines = []
    self._reader = threading.Thread(target=self._read)
    self._reader.start()
    self.url = self.event('listening')['url']

  def _read(self):
    for line in self.process.stdout:
      self.lines.append(line)

  def event(self, name):
    """Waits for an event."""
    last = time.monotonic() + 120
    while True:
      for line in self.lines:
        if f'"event": "{name}"' in line:
          return json.loads(line)
      assert time.monotonic() < last, self.lines
      if self.process.poll() is not None:
        self._reader.join()
        assert any(f'"event": "{name}"' in one for one in self.lines), (
          self.lines
        )
      time.sleep(0.02)

  def end(self):
    if self.process.poll() is None:
      self.process.kill()
    status = self.process.wait(60)
    self._reader.join()
    self.process.stdout.close()
    return status


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp('served')
  tiny_service.write_runs(root)
  return root


def test_the_end(place):
  """Running requests are finished, others refused; then it exits with 0."""
  program = _Program(
    ['--port=0', f'--workdir={place}/one', f'--table=other={place}/two'],
    _environment(VTOKENS_API_KEY='of-the-environment'),
  )
  try:
    client = openai.OpenAI(
      base_url=f'{program.url}/v1',
      api_key='of-the-environment',
      max_retries=0,
    )
    names = [model.id for model in client.models.list()]
    assert names == ['one', 'other', 'base']
    with client.completions.create(
      model='base', prompt='Once', max_tokens=400, stream=True
    ) as stream:
      events = iter(stream)
      next(events)
      program.process.send_signal(signal.SIGTERM)
      assert program.event('ending')['running'] == 1
      with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model='other', prompt=QUESTION)
      assert caught.value.status_code == 503
      assert 'Retry-After' in caught.value.response.headers
      assert httpx.get(f'{program.url}/ready').status_code == 503
      finish = [event.choices[0].finish_reason for event in events]
    assert finish[-1] in ('stop', 'length')
    program.event('ended')
    assert program.process.wait(30) == 0
  finally:
    program.end()
  assert not any('Traceback' in line for line in program.lines)
  assert not any(QUESTION in line for line in program.lines)


def test_a_second_signal_ends_it_at_once(place):
  program = _Program(
    ['--port=0', '--drain=600', f'--table=a={place}/one'], _environment()
  )
  try:
    client = openai.OpenAI(
      base_url=f'{program.url}/v1', api_key='unused', max_retries=0
    )
    with client.completions.create(
      model='base', prompt='Once', max_tokens=500, stream=True
    ) as stream:
      next(iter(stream))
      program.process.send_signal(signal.SIGINT)
      program.event('ending')
      program.process.send_signal(signal.SIGINT)
      program.event('ended_at_once')
      assert program.process.wait(20) == 128 + signal.SIGINT
  finally:
    program.end()
