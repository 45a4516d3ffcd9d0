"""Tests of vtokens.host.aside."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vtokens.host import aside, stopping


class _Enough(Exception):
  pass


def test_what_the_function_returns_or_raises():
  main = threading.current_thread()
  assert aside.call(threading.current_thread) is not main

  def fail():
    raise _Enough

  with pytest.raises(_Enough):
    aside.call(fail)


def test_check_ends_the_wait():
  done = threading.Event()

  def check():
    raise _Enough

  began = time.monotonic()
  with pytest.raises(_Enough):
    aside.call(lambda: done.wait(30), check)
  assert time.monotonic() - began < 5
  done.set()


def test_a_signal_ends_the_wait():
  done = threading.Event()
  timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
  with stopping.StopRequest() as stop:
    timer.start()
    began = time.monotonic()
    with pytest.raises(stopping.Stopped) as stopped:
      stop.run(lambda: done.wait(30))
    assert time.monotonic() - began < 5
  done.set()
  assert (stopped.value.exit_code, stopped.value.agreed) == (143, False)


def test_in_a_thread():
  """Which no signal reaches: it is that thread itself."""
  found = []

  def work():
    found.append(aside.call(threading.current_thread))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [thread]


# A computation of minutes, which no signal and no exit interrupts.
_BUSY = """
import atexit, sys
import jax, jax.numpy as jnp
from vtokens.host import aside, stopping
from vtokens.settings import flags

@jax.jit
def work(x):
  return jax.lax.fori_loop(0, 10**6, lambda i, y: jnp.tanh(y @ x), x)

def main(unused_argv):
  x = jax.block_until_ready(jnp.ones((500, 500)))
  with stopping.StopRequest() as stop:
    print('started', flush=True)
    stop.run(lambda: jax.block_until_ready(work(x)))

flags.run(main)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_exit_does_not_wait_for_a_device(number):
  with subprocess.Popen(
    [sys.executable, '-c', _BUSY],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'started\n'
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
  assert time.monotonic() - began < 5
  assert process.returncode == 128 + number
  assert 'stopped by' in out and 'continue with' in out
  assert 'Traceback' not in err and 'FATAL' not in err
