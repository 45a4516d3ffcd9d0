"""Training by several processes: equal to one, stopped, killed, continued."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run

_LAUNCH = tiny_run.ROOT / 'launch' / 'local_multiprocess.sh'
# As many devices in all.
_TOPOLOGIES = ((1, 8), (2, 4), (4, 2))
_OVERRIDES = (
  '--config.data.test=()',
  '--config.data.validation=()',
  '--config.data.batch_size=8',
  '--config.optim.learning_rate=0.01',
  '--config.distributed.failure_timeout=10',
)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not pathlib.Path('/proc/self/environ').exists(),
    reason='processes are told apart by /proc',
  ),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tiny_run.make_place(
    tmp_path_factory.mktemp('distributed'),
    hidden_size=64,
    num_attention_heads=8,
    num_key_value_heads=8,
    intermediate_size=96,
  )


@contextlib.contextmanager
def _started(place, workdir, processes, devices, mesh=(2, 2, 2)):
  """The launcher at work; its output in `workdir`.txt."""
  out = workdir.with_suffix('.txt')
  with (
    out.open('w') as stdout,
    subprocess.Popen(
      [
        *('bash', str(_LAUNCH), '--processes', str(processes)),
        *('--devices', str(devices), '--'),
        *place.command(workdir, *_OVERRIDES, f'--config.mesh.shape={mesh}'),
      ],
      cwd=place.root,
      env={**place.env, 'PATH': f'{pathlib.Path(sys.executable).parent}:/bin'},
      stdout=stdout,
      stderr=subprocess.STDOUT,
    ) as launcher,
  ):
    try:
      yield launcher
      launcher.wait(timeout=400)
    finally:
      for number in range(processes):
        with contextlib.suppress(ProcessLookupError, AssertionError):
          os.kill(_process(launcher, number), signal.SIGKILL)
      launcher.kill()


def _process(launcher, number: int) -> int:
  """The process id of a process of the run."""
  tasks = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children')
  wanted = f'JAX_PROCESS_ID={number}'.encode()
  with contextlib.suppress(FileNotFoundError):
    for pid in tasks.read_text().split():
      if wanted in pathlib.Path(f'/proc/{pid}/environ').read_bytes().split(
        b'\0'
      ):
        return int(pid)
  raise AssertionError(f'process {number} is not there')


def _run(place, workdir, processes, devices, mesh=(2, 2, 2)):
  with _started(place, workdir, processes, devices, mesh) as launcher:
    pass
  out = workdir.with_suffix('.txt').read_text()
  assert launcher.returncode == 0, out
  return out


def _wait_for_step(workdir, step, launcher):
  deadline = time.monotonic() + 300
  while tiny_run.last_step(workdir) < step:
    assert launcher.poll() is None, workdir.with_suffix('.txt').read_text()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def _losses(workdir):
  return [row['loss'] for row in tiny_run.rows(workdir)]


@pytest.fixture(scope='module')
def whole(place):
  """Uninterrupted runs by topology."""
  found = {}
  for topology in _TOPOLOGIES:
    found[topology] = place.root / f'whole{topology[0]}'
    _run(place, found[topology], *topology)
  return found


def test_as_many_devices_in_more_processes(whole):
  one = _losses(whole[1, 8])
  assert len(one) == tiny_run.NUM_STEPS
  assert one[-1] < 0.95 * one[0]
  for workdir in whole.values():
    np.testing.assert_allclose(_losses(workdir), one, rtol=1e-5)


def test_a_signal_to_one_process(place, whole):
  """All save the same step; the same topology goes on bit for bit."""
  workdir = place.root / 'stopped'
  with _started(place, workdir, 2, 4) as launcher:
    _wait_for_step(workdir, 4, launcher)
    os.kill(_process(launcher, 1), signal.SIGTERM)
  out = workdir.with_suffix('.txt').read_text()
  assert launcher.returncode == 128 + signal.SIGTERM, out
  assert 'stopped by SIGTERM; continue with: python -m vtokens.train' in out
  step = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  assert 4 <= step < tiny_run.NUM_STEPS
  out = _run(place, workdir, 2, 4)
  assert f'continuing after step {step}' in out
  tiny_run.assert_same_result(workdir, whole[2, 4])


def test_another_topology_goes_on(place, whole):
  workdir = place.root / 'moved'
  with _started(place, workdir, 4, 2) as launcher:
    _wait_for_step(workdir, 4, launcher)
    os.kill(_process(launcher, 0), signal.SIGTERM)
  assert launcher.returncode == 128 + signal.SIGTERM
  # And as another mesh.
  out = _run(place, workdir, 1, 8, mesh=(8, 1, 1))
  assert 'continuing after step' in out
  np.testing.assert_allclose(_losses(workdir), _losses(whole[1, 8]), rtol=1e-5)


def test_one_process_is_killed(place, whole):
  """The other ends by itself, and the run goes on from a checkpoint."""
  workdir = place.root / 'killed'
  with _started(place, workdir, 2, 4) as launcher:
    _wait_for_step(workdir, 5, launcher)
    os.kill(_process(launcher, 1), signal.SIGKILL)
    killed = time.monotonic()
    launcher.wait(timeout=120)
    assert time.monotonic() - killed < 60
  out = workdir.with_suffix('.txt').read_text()
  assert launcher.returncode == 1, out
  assert 'error: process 1 has shown no sign of life' in out
  out = _run(place, workdir, 2, 4)
  assert 'continuing after step' in out
  tiny_run.assert_same_result(workdir, whole[2, 4])
