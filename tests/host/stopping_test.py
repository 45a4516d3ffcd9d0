"""Tests of vtokens.host.stopping."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vtokens.host import stopping


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_becomes_a_flag(name, capfd):
  with stopping.StopRequest() as stop:
    assert not stop.signal
    stop.check()
    stop.check_together()
    number = signal.Signals[name]
    os.kill(os.getpid(), number)
    assert stop.signal == number
    with pytest.raises(stopping.Stopped, match=f'^stopped by {name}$') as alone:
      stop.check()
    with pytest.raises(stopping.Stopped) as together:
      stop.check_together()
    assert (alone.value.agreed, together.value.agreed) == (False, True)
    assert alone.value.exit_code == together.value.exit_code == 128 + number
  assert (
    f'{name}: stopping as soon as the state is safe' in capfd.readouterr().err
  )


_TWICE = """
import os, signal, sys, time
from vtokens.host import stopping

with stopping.{block}():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  finally:
    os.kill(os.getpid(), signal.{second})
    print('cleaned up')
"""


@pytest.mark.parametrize('second', ['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('block', ['StopRequest', 'at_once'])
def test_a_second_signal_ends_at_once(block, second):
  done = subprocess.run(
    [sys.executable, '-c', _TWICE.format(block=block, second=second)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 128 + signal.Signals[second]
  assert done.stdout == ''
  first, line = done.stderr.split('\n\n')
  assert first.startswith('\nSIGTERM: stop')
  assert line == f'{second}: ended at once\n'


def test_signals_are_given_back():
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  with pytest.raises(RuntimeError):
    with stopping.StopRequest():
      assert [signal.getsignal(number) for number in numbers] != before
      raise RuntimeError
  assert [signal.getsignal(number) for number in numbers] == before


def test_one_request_does_not_stop_the_next():
  with stopping.StopRequest():
    os.kill(os.getpid(), signal.SIGTERM)
  assert not stopping.StopRequest().signal


def test_a_signal_may_come_while_something_is_printed(monkeypatch):
  # A stream does not let its own signal handler in: print would raise.
  class Stream:
    busy = False

    def write(self, text):
      if Stream.busy:
        raise RuntimeError('reentrant call')
      Stream.busy = True
      if not stop.signal:
        os.kill(os.getpid(), signal.SIGTERM)
      Stream.busy = False

    def flush(self):
      pass

  with stopping.StopRequest() as stop, monkeypatch.context() as patch:
    patch.setattr('sys.stdout', Stream())
    patch.setattr('sys.stderr', Stream())
    print('loss')
  assert stop.signal == signal.SIGTERM


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_ends_at_once_and_cleans_up(name, capfd):
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  cleaned = []
  with pytest.raises(SystemExit) as stopped:
    with stopping.at_once():
      try:
        os.kill(os.getpid(), signal.Signals[name])
      finally:
        cleaned.append(True)
  assert stopped.value.code == 128 + signal.Signals[name]
  assert cleaned
  assert [signal.getsignal(number) for number in numbers] == before
  assert f'{name}: stopped' in capfd.readouterr().err


def test_one_block_within_another():
  """Both end with the signal's exit."""
  with pytest.raises(SystemExit) as stopped:
    with stopping.at_once():
      with contextlib.suppress(SystemExit):
        with stopping.at_once():
          os.kill(os.getpid(), signal.SIGTERM)
      with pytest.raises(SystemExit):
        stopping.check()
  assert stopped.value.code == 128 + signal.SIGTERM
  stopping.check()


@pytest.mark.parametrize('error', [TypeError(), None])
def test_an_exit_that_is_lost_on_its_way(error):
  """In compiled code that calls back into Python."""
  with pytest.raises(SystemExit) as stopped:
    with stopping.at_once():
      with contextlib.suppress(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
      if error:
        raise error
  assert stopped.value.code == 128 + signal.SIGTERM


def test_an_exit_that_is_lost_is_raised_again():
  """But not while it is on its way, however long cleaning up takes."""
  steps = []
  began = time.monotonic()
  with pytest.raises(SystemExit) as stopped:
    with stopping.at_once():
      try:
        with contextlib.suppress(SystemExit):
          os.kill(os.getpid(), signal.SIGTERM)
        steps.append('lost')
        time.sleep(30)
        steps.append('went on')
      finally:
        time.sleep(2.5)
        steps.append('cleaned up')
  assert steps == ['lost', 'cleaned up']
  assert stopped.value.code == 128 + signal.SIGTERM
  assert time.monotonic() - began < 20
  assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


_IN_A_CALLBACK = """
import gc, os, signal, sys, time
from vtokens.host import stopping

def call(phase, info):
  gc.callbacks.clear()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.1)

with stopping.at_once():
  gc.callbacks.append(call)
  gc.collect()
  print('lost', flush=True)
  time.sleep(30)
"""


def test_an_exit_that_python_loses():
  done = subprocess.run(
    [sys.executable, '-c', _IN_A_CALLBACK], capture_output=True, text=True
  )
  assert done.returncode == 128 + signal.SIGTERM
  assert done.stdout == 'lost\n'
  assert done.stderr == '\nSIGTERM: stopped\n'


def test_an_error_without_a_signal():
  with pytest.raises(TypeError):
    with stopping.at_once():
      raise TypeError


def test_at_once_in_a_thread():
  """Python tells signals to the main thread alone."""
  ran = []

  def work():
    with stopping.at_once():
      ran.append(True)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert ran
