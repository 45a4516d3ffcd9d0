"""Tests of vtokens.host.streams: programs whose output nobody reads."""

import fcntl
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from vtokens.host import streams

_ROOT = pathlib.Path(__file__).parents[2]
_ENV = {**os.environ, 'PYTHONPATH': str(_ROOT)}

# A run of many steps that keeps its state, and one that starts anew.
_PROGRAM = """
import pathlib, sys, time
from vtokens.settings import flags
from vtokens.host import stopping, writers

def hang():
  pathlib.Path('saving').touch()
  time.sleep(100)

def run(unused_argv, before_saving=lambda: None):
  with stopping.StopRequest() as stop:
    try:
      for step in range(100_000):
        writers.say(f'step {step} ' + 'x' * 100)
        print('bar', file=sys.stderr)
        pathlib.Path('step').write_text(str(step))
        stop.check()
    except stopping.Stopped:
      before_saving()
      pathlib.Path('state').write_text('saved')
      raise

def hanging(unused_argv):
  run(unused_argv, hang)

def anew(unused_argv):
  try:
    for step in range(100_000):
      print(f'step {step} ' + 'x' * 100)
      pathlib.Path('step').write_text(str(step))
  finally:
    pathlib.Path('state').write_text('cleaned up')

def short(unused_argv):
  with open('data', 'wb') as file:
    import os
    # As compiled libraries do.
    for number in (1, 2):
      os.write(number, b'noise')
    file.write(b'data')
  print('out')
  print('err', file=sys.stderr)

def slow(unused_argv):
  for number in range(5000):
    print(f'line {number} ' + 'é' * 20)

flags.run(globals()[sys.argv.pop(1)])
"""


def _command(name):
  return [sys.executable, '-c', _PROGRAM, name]


def _shell(line, name, directory):
  """Exit status of the program and what came on standard error."""
  done = subprocess.run(
    ['bash', '-c', line, 'bash', *_command(name)],
    cwd=directory,
    env=_ENV,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done.stdout.strip().splitlines()[-1], done.stderr


@pytest.mark.parametrize(
  'name, state', [('run', 'saved'), ('anew', 'cleaned up')]
)
@pytest.mark.parametrize(
  'pipe', ['"$@" 2>err | head -1 >&2', '"$@" 2>&1 >out | head -1 >&2']
)
def test_a_reader_that_has_gone_ends_it(name, state, pipe, tmp_path):
  if name == 'anew' and '2>&1' in pipe:
    return  # It writes nothing there.
  status, shown = _shell(f'{pipe}; echo ${{PIPESTATUS[0]}}', name, tmp_path)
  assert status == str(128 + signal.SIGPIPE)
  assert len(shown.splitlines()) == 1
  assert (tmp_path / 'state').read_text() == state
  assert int((tmp_path / 'step').read_text()) < 90_000
  for file in ('out', 'err'):
    if (tmp_path / file).exists():
      assert 'Traceback' not in (tmp_path / file).read_text()


def test_closed_from_the_start(tmp_path):
  status, _ = _shell('"$@" <&- >&- 2>&-; echo $?', 'short', tmp_path)
  assert status == '0'
  assert (tmp_path / 'data').read_bytes() == b'data'


def test_a_full_disk(tmp_path):
  status, error = _shell('"$@" >/dev/full; echo $?', 'slow', tmp_path)
  assert status == '1'
  (line,) = error.splitlines()
  assert line.startswith(
    'error: standard output cannot be written: No space left on device'
  )


def _until_full(process, directory):
  """Waits until the program makes no more steps."""
  last, since = None, time.monotonic()
  while time.monotonic() - since < 0.7 or last is None:
    step = directory / 'step'
    found = step.read_text() if step.exists() else None
    if found != last:
      last, since = found, time.monotonic()
    assert process.poll() is None
    time.sleep(0.05)


def test_a_full_pipe_does_not_hold_up_the_end(tmp_path):
  reader, writer = os.pipe()
  with subprocess.Popen(
    _command('run'), cwd=tmp_path, env=_ENV, stdout=writer, stderr=writer
  ) as process:
    os.close(writer)
    try:
      _until_full(process, tmp_path)
      process.send_signal(signal.SIGTERM)
      assert process.wait(30) == 128 + signal.SIGTERM
    finally:
      process.kill()
  os.close(reader)
  assert (tmp_path / 'state').read_text() == 'saved'


def test_a_second_signal_does_not_wait_for_a_full_pipe(tmp_path):
  reader, writer = os.pipe()
  with subprocess.Popen(
    _command('hanging'), cwd=tmp_path, env=_ENV, stdout=writer, stderr=writer
  ) as process:
    os.close(writer)
    try:
      _until_full(process, tmp_path)
      process.send_signal(signal.SIGTERM)
      while not (tmp_path / 'saving').exists():
        assert process.poll() is None
        time.sleep(0.05)
      process.send_signal(signal.SIGINT)
      assert process.wait(30) == 128 + signal.SIGINT
    finally:
      process.kill()
  os.close(reader)
  assert not (tmp_path / 'state').exists()


def test_what_a_slow_reader_gets_is_whole(tmp_path):
  """More than a pipe holds."""
  line = '"$@" 2>/dev/null | { sleep 2; tail -1; } >&2; echo $PIPESTATUS'
  status, shown = _shell(line, 'slow', tmp_path)
  assert status == '0'
  assert shown == 'line 4999 ' + 'é' * 20 + '\n'


def test_a_notice_to_a_descriptor_of_a_high_number(monkeypatch):
  """select() would refuse it."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  number = 1500
  if soft <= number:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 100, hard))
  reader, writer = os.pipe()
  high = fcntl.fcntl(writer, fcntl.F_DUPFD, number)
  with os.fdopen(high, 'w') as stream:
    monkeypatch.setattr(sys, 'stderr', stream)
    streams.notice('stopping')
    monkeypatch.undo()
  assert os.read(reader, 100) == b'stopping'
  os.close(reader)
  os.close(writer)
