"""Several processes as one program: real ones, on this machine."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny_run

from vtokens import config
from vtokens.devices import distributed
from vtokens.host import errors, locks

_AUTO = config.Distributed()


def test_one_process_alone(tmp_path):
  with distributed.session(_AUTO):
    assert distributed.is_first()
    assert distributed.from_first(lambda: [1]) == [1]
    assert distributed.AnyProcess()(7) == 7
    distributed.check_shared(str(tmp_path / 'none'))
    with distributed.sole_writer(str(tmp_path)):
      with pytest.raises(errors.UserError, match='another program'):
        with locks.sole_writer(tmp_path):
          pass


# What the processes of the tests below do, until process `who` fails.
_PROGRAM = """
import os, pathlib, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from vtokens import config
from vtokens.devices import distributed
from vtokens.host import errors, stopping, writers
from vtokens.settings import flags

mode, who, directory = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)

def main(unused_argv):
  settings = config.Distributed(failure_timeout=5, start_timeout=20)
  with distributed.session(settings):
    me = jax.process_index()
    writers.say(f'{jax.process_count()} processes')
    if mode == 'agree':
      assert distributed.from_first(lambda: {'me': me}) == {'me': 0}
      try:
        distributed.from_first(lambda: fail())
        assert False
      except errors.UserError as e:
        assert str(e) == 'no good'
      asked = distributed.AnyProcess()
      told = [asked(0), asked(5 if me == who else 0), asked(0), asked(0)]
      assert told == [0, 0, 5, 0], told
      rows = np.arange(3) + me
      assert multihost_utils.process_allgather(rows).shape == (3, 3)
      try:
        distributed.check_shared(f'{directory}/{me}')
      finally:
        pathlib.Path(directory, f'checked{me}').touch()
      return
    if mode == 'shared':
      distributed.check_shared(directory)
      with distributed.sole_writer(directory):
        return
    with stopping.StopRequest(distributed.AnyProcess()) as stop:
      for step in range(200):
        if mode == 'together':
          stop.check_together()
        else:
          stop.check()
        multihost_utils.process_allgather(np.ones(3))
        if step == 3 and me == who:
          if mode == 'raise':
            raise errors.UserError('the dog ate it')
          if mode == 'bug':
            raise KeyError('oh')
          number = signal.SIGKILL if mode == 'kill' else signal.SIGTERM
          os.kill(os.getpid(), number)
        time.sleep(0.05)

def fail():
  raise errors.UserError('no good')

flags.run(main)
"""


def _environment(number: int, port: int) -> dict[str, str]:
  return {
    **os.environ,
    'PYTHONPATH': str(tiny_run.ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': '3',
    'JAX_PROCESS_ID': str(number),
  }


def _run(
  directory: pathlib.Path, mode: str, who: int
) -> tuple[list[int], list[str], float]:
  """Exit codes, outputs and seconds of three processes."""
  script = directory / 'program.py'
  script.write_text(_PROGRAM)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  began = time.monotonic()
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), mode, str(who), str(directory)],
      env=_environment(number, port),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(3)
  ]
  try:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [p.returncode for p in processes], outputs, time.monotonic() - began


def test_they_agree(tmp_path):
  codes, outputs, _ = _run(tmp_path, 'agree', 1)
  text = '\n'.join(outputs)
  # Each sees its own directory: that is told, by those who do.
  assert codes == [1, 1, 1], text
  assert all((tmp_path / f'checked{i}').exists() for i in range(3)), text
  assert 'is not the directory that the first process sees' in outputs[1]
  assert outputs[0].count('3 processes') == 1
  assert '3 processes' not in outputs[1]


def test_they_end_together(tmp_path):
  codes, outputs, _ = _run(tmp_path, 'shared', 1)
  assert codes == [0, 0, 0], '\n'.join(outputs)


@pytest.mark.parametrize('who', [0, 2])
def test_one_fails(tmp_path, who):
  codes, outputs, seconds = _run(tmp_path, 'raise', who)
  assert codes == [1, 1, 1], '\n'.join(outputs)
  assert seconds < 60
  for number, output in enumerate(outputs):
    assert 'Traceback' not in output
    if number == who:
      assert 'error: the dog ate it' in output
    else:
      assert re.search(
        rf'error: process {who} \(\S+\) failed: the dog ate it', output
      )


def test_one_has_a_bug(tmp_path):
  codes, outputs, seconds = _run(tmp_path, 'bug', 1)
  assert codes == [1, 1, 1], '\n'.join(outputs)
  assert seconds < 60
  assert "KeyError: 'oh'" in outputs[1]
  assert re.search(r"error: process 1 \(\S+\) failed: 'oh'", outputs[0])


@pytest.mark.slow
def test_one_is_killed(tmp_path):
  codes, outputs, seconds = _run(tmp_path, 'kill', 1)
  assert codes == [1, -signal.SIGKILL, 1], '\n'.join(outputs)
  assert seconds < 60
  for number in (0, 2):
    assert 'error: process 1 has shown no sign of life' in outputs[number]


@pytest.mark.slow
def test_the_first_is_killed(tmp_path):
  """It held the messages: JAX itself ends the others, and says so."""
  codes, outputs, seconds = _run(tmp_path, 'kill', 0)
  assert codes[0] == -signal.SIGKILL
  assert seconds < 60
  for number in (1, 2):
    assert codes[number] not in (0, -signal.SIGKILL), outputs[number]
    assert 'leader task' in outputs[number]


def test_a_signal_to_one_stops_all(tmp_path):
  codes, outputs, _ = _run(tmp_path, 'together', 1)
  assert codes == [128 + signal.SIGTERM] * 3, '\n'.join(outputs)
  assert 'stopped by SIGTERM; continue with: python' in outputs[0]


def test_a_signal_to_one_that_the_others_do_not_know_of(tmp_path):
  codes, outputs, seconds = _run(tmp_path, 'alone', 1)
  assert codes == [128 + signal.SIGTERM] * 3, '\n'.join(outputs)
  assert seconds < 60
  told = r'process 1 \(\S+\): stopped by SIGTERM; the same command continues'
  assert re.search(told, outputs[0])
  assert 'error' not in outputs[0]
