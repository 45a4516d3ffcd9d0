"""Programs that run in a process of their own with several CPU devices."""

import os
import subprocess
import sys

import tiny_run
import xla_flags

_PATHS = tiny_run.ROOT, tiny_run.ROOT / 'tests' / 'support'


def run(program: str, *arguments: str, devices: int = 8) -> str:
  """Runs a Python program; returns what it prints.

  Args:
    program: its source.
    *arguments: its `sys.argv[1:]`.
    devices: number of CPU devices.

  Raises:
    AssertionError: it fails; with what it wrote to standard error.
  """
  done = subprocess.run(
    [sys.executable, '-c', program, *arguments],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(map(str, _PATHS)),
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': xla_flags.devices(devices),
    },
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout
