"""Several processes as one program: how they meet, agree and end together.

Without a coordinator there is one process, and everything here is a no-op.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

# Its key-value store is what processes can talk by before and without their
# devices; JAX has no public name for it. Orbax uses it in the same way.
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vtokens import config
from vtokens.host import claimed_directory, errors, paths, stopping, writers

# Seconds between two looks at how the others are.
_TICK = 1.0
# How long a process that has failed stays for the others to read why.
_FAREWELL = 10.0
_TPU_VM = 'TPU VM'
_FOREVER_MS = 7 * 24 * 3600 * 1000
# What a process says that was asked to stop, and leaves nothing to be saved.
_CONTINUES = 'the same command continues'
_ALIVE, _FAILED, _READ = 'vtokens/alive/', 'vtokens/failed/', 'vtokens/read/'


class ProcessGroup(typing.NamedTuple):
  """How to reach the other processes; what is None, JAX finds out itself.

  Attributes:
    name: where it comes from, for messages.
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are.
    process_id: this one's number.
    all_devices: whether the process has all devices of its machine that it
      can see; otherwise JAX gives it one, by its number on the machine.
  """

  name: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  all_devices: bool = True


# Variables with number of processes, number of this one, and processes on this
# machine, of the launchers that JAX can ask for a coordinator.
_LAUNCHERS = {
  'Slurm': (
    'SLURM_STEP_NUM_TASKS',
    'SLURM_PROCID',
    'SLURM_STEP_TASKS_PER_NODE',
  ),
  'Open MPI': (
    'OMPI_COMM_WORLD_SIZE',
    'OMPI_COMM_WORLD_RANK',
    'OMPI_COMM_WORLD_LOCAL_SIZE',
  ),
}


def find_process_group(
  settings: config.Distributed, environ: Mapping[str, str]
) -> ProcessGroup | None:
  """How this process reaches the others, or None where it is alone.

  In this order: the config, JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or else the launcher's numbers), Slurm and Open MPI with more
  than one task, a TPU pod or multi-slice (GKE, or a TPU VM).

  Args:
    settings: of the config.
    environ: environment variables.

  Raises:
    errors.UserError: some of it is missing or no number.
  """
  if settings.coordinator == 'none':
    return None
  found = _launcher(environ)
  if settings.coordinator != 'auto':
    return _explicit(
      'config.distributed',
      settings.coordinator,
      settings.num_processes or None,
      settings.process_id if settings.process_id >= 0 else None,
      found,
    )
  address = environ.get('JAX_COORDINATOR_ADDRESS')
  if address:
    return _explicit(
      'JAX_COORDINATOR_ADDRESS',
      address,
      _number(environ, 'JAX_NUM_PROCESSES'),
      _number(environ, 'JAX_PROCESS_ID'),
      found,
    )
  if found is not None:
    return found if found.num_processes != 1 else None
  workers = environ.get('TPU_WORKER_HOSTNAMES', '')
  slices = _number(environ, 'MEGASCALE_NUM_SLICES') or 1
  if ',' in workers or slices > 1:
    return ProcessGroup('TPU pod')
  if _has_tpu() and 'TPU_SKIP_MDS_QUERY' not in environ:
    return ProcessGroup(_TPU_VM)
  return None


def _explicit(
  name: str,
  coordinator: str,
  num_processes: int | None,
  process_id: int | None,
  launcher: ProcessGroup | None,
) -> ProcessGroup:
  if launcher is not None:
    if num_processes is None:
      num_processes = launcher.num_processes
    if process_id is None:
      process_id = launcher.process_id
  if num_processes is None or process_id is None:
    raise errors.UserError(
      f'{name}: {coordinator}, but not how many processes there are and which '
      'this one is; set config.distributed.num_processes and process_id, or '
      'JAX_NUM_PROCESSES and JAX_PROCESS_ID'
    )
  if not 0 <= process_id < num_processes:
    raise errors.UserError(
      f'{name}: process {process_id} of {num_processes}: expected a number '
      f'from 0 to {num_processes - 1}'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise errors.UserError(f'{name}: {coordinator!r}, expected HOST:PORT')
  return ProcessGroup(
    name,
    coordinator,
    num_processes,
    process_id,
    launcher is None or launcher.all_devices,
  )


def _launcher(environ: Mapping[str, str]) -> ProcessGroup | None:
  """What Slurm or Open MPI say, the coordinator apart."""
  for name, variables in _LAUNCHERS.items():
    total, number, here = variables
    if total not in environ or number not in environ:
      continue
    # Slurm's is like '2(x3),1': two on each of three machines, one on another.
    alone = environ.get(here, '1').split('(')[0].split(',')[0] == '1'
    # The launcher may have dealt out the GPUs already.
    visible = environ.get('CUDA_VISIBLE_DEVICES', '')
    return ProcessGroup(
      name,
      num_processes=_number(environ, total),
      process_id=_number(environ, number),
      all_devices=alone or (visible != '' and ',' not in visible),
    )
  return None


def _number(environ: Mapping[str, str], name: str) -> int | None:
  value = environ.get(name)
  if value is None:
    return None
  if not value.isdecimal():
    raise errors.UserError(
      f'environment variable {name}={value!r}: expected a number'
    )
  return int(value)


def _has_tpu() -> bool:
  return importlib.util.find_spec('libtpu') is not None and any(
    pathlib.Path(path).exists() for path in ('/dev/accel0', '/dev/vfio/0')
  )


# Whether a `session` with others is open.
_watched = False


def may_leave() -> bool:
  """Whether this process can stop by itself, at any point.

  It is alone, or its `session` ends the others; they would wait for it for ever
  where a script of the user's has brought them together.
  """
  return _watched or jax.process_count() == 1


@contextlib.contextmanager
def session(settings: config.Distributed) -> Iterator[None]:
  """Joins the other processes, if there are any, for as long as it is open.

  When one process fails the others end as well, within
  `settings.failure_timeout` and some seconds, each with a message that names
  it. To be entered before JAX computes anything.

  Args:
    settings: of the config.

  Raises:
    errors.UserError: the others cannot be reached.
  """
  global _watched
  group = find_process_group(settings, os.environ)
  if group is None:
    yield
    return
  _join(group, settings)
  if jax.process_count() == 1:
    yield
    return
  if not is_first():
    writers.silence()
  watch = _Watch(settings.failure_timeout)
  watch.start()
  _watched = True
  agreed = None
  try:
    yield
  except stopping.Stopped as e:
    if not e.agreed:
      watch.fail(e, e.exit_code)
    agreed = e
  except BaseException as e:
    watch.fail(e)
  watch.leave_together()
  if agreed is not None:
    raise agreed


def _join(group: ProcessGroup, settings: config.Distributed) -> None:
  """Meets the other processes.

  Raises:
    errors.UserError: that fails.
  """
  where = '' if group.coordinator is None else f' at {group.coordinator}'
  try:
    jax.distributed.initialize(
      group.coordinator,
      group.num_processes,
      group.process_id,
      # An empty list: no choice among the devices.
      local_device_ids=[] if group.all_devices else None,
      initialization_timeout=settings.start_timeout,
      shutdown_timeout_seconds=settings.start_timeout,
    )
  # JAX has no common class for them: no coordinator found, none answers.
  except (ValueError, RuntimeError) as e:
    if group.name == _TPU_VM and isinstance(e, ValueError):
      return  # A machine with a TPU that belongs to no pod.
    raise errors.UserError(
      f'the processes of this run ({group.name}) did not meet{where} within '
      f'config.distributed.start_timeout={settings.start_timeout} s: '
      f'{str(e).splitlines()[0]}. '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who '
      'they are; --config.distributed.coordinator=none runs one alone'
    ) from None


class _Watch(threading.Thread):
  """Tells the others that this process lives, and ends it when one does not.

  By the key-value store of the coordinator, which is process 0. If that one
  is killed, JAX itself ends the others at once.

  Args:
    timeout: seconds without a sign of life after which a process has failed.
  """

  def __init__(self, timeout: float):
    super().__init__(name='watch', daemon=True)
    self._timeout = timeout
    self._client: Any = jax_distributed.global_state.client
    self._me = jax.process_index()
    self._stopped = threading.Event()
    self._signs = itertools.count()
    # Of each process the last sign of life and when it came.
    self._seen = {
      str(number): ('', time.monotonic())
      for number in range(jax.process_count())
    }

  def run(self) -> None:
    """Looks after the others until `leave_together`."""
    while not self._stopped.wait(_TICK):
      try:
        self._show_alive()
        failed = self._first_failure()
      # Process 0 has gone; JAX tells, and ends this process.
      except jax.errors.JaxRuntimeError:
        return
      if failed is not None and not self._stopped.is_set():
        self._end(*failed)

  def leave_together(self) -> None:
    """Waits for the others to come as far, and takes leave of them."""
    self._client.wait_at_barrier('vtokens/end', _FOREVER_MS)
    self._stopped.set()
    jax.distributed.shutdown()

  def fail(self, failure: BaseException, code: int = 1) -> typing.NoReturn:
    """Tells the others that this process has failed, and ends it.

    Not by way of the interpreter's exit: that would wait for all processes.
    """
    if isinstance(failure, jax.errors.JaxRuntimeError | ValueError):
      # Communication fails here first when another process is killed: the
      # watch gets to know which, and ends this one.
      time.sleep(self._timeout + 10 * _TICK)
    text = str(failure) or type(failure).__name__
    where = f'process {self._me} ({socket.gethostname()})'
    self._stopped.set()
    if isinstance(failure, stopping.Stopped):
      self._note_failure(self._me, f'{where}: {text}; {_CONTINUES}', code)
      self._end(f'{text}; {_CONTINUES}', code)
    if not isinstance(failure, errors.UserError):
      traceback.print_exception(failure)
    self._note_failure(self._me, f'error: {where} failed: {text}', code)
    self._end(f'error: {text}', code)

  def _show_alive(self) -> None:
    self._client.key_value_set(
      f'{_ALIVE}{self._me}', str(next(self._signs)), allow_overwrite=True
    )

  def _first_failure(self) -> tuple[str, int] | None:
    """What the first process that failed says, and exits with."""
    failed = self._client.key_value_dir_get(_FAILED)
    if failed:
      code, _, message = failed[0][1].partition(' ')
      return message, int(code)
    if self._me:
      return None
    now = time.monotonic()
    for key, sign in self._client.key_value_dir_get(_ALIVE):
      number = key.removeprefix(_ALIVE)
      if self._seen[number][0] != sign:
        self._seen[number] = sign, now
    for number, (_, when) in self._seen.items():
      if now - when > self._timeout:
        message = (
          f'error: process {number} has shown no sign of life for '
          f'{now - when:.0f} s'
        )
        self._note_failure(number, message, 1)
        return message, 1
    return None

  def _note_failure(self, number: int | str, message: str, code: int) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(
        f'{_FAILED}{number}', f'{code} {message}', allow_overwrite=True
      )

  def _end(self, message: str, code: int = 1) -> typing.NoReturn:
    """Ends the process; process 0, which holds the messages, as the last."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f'{_READ}{self._me}', '')
      if self._me == 0:
        self._wait_for_readers()
    os._exit(code)

  def _wait_for_readers(self) -> None:
    deadline = time.monotonic() + _FAREWELL
    while time.monotonic() < deadline:
      if len(self._client.key_value_dir_get(_READ)) == jax.process_count():
        return
      time.sleep(0.1)


def is_first() -> bool:
  """Whether this is the process that writes and speaks for all."""
  return jax_distributed.global_state.process_id == 0


def fetch(array: Shaped[Array, '...']) -> Shaped[np.ndarray, '...']:
  """A whole array on every process, however it is sharded.

  All processes have to call it, in the same order.
  """
  if array.is_fully_addressable:
    return np.asarray(jax.device_get(array))
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def from_first(function: Callable[[], Any]) -> Any:
  """What a function returns on the first process, on all of them.

  All processes have to call it, in the same order.

  Args:
    function: called on the first process only; returns a JSON value.

  Raises:
    errors.UserError: on all processes, if the function raises it.
  """
  if jax.process_count() == 1:
    return function()
  value, failure = None, None
  if is_first():
    try:
      value = function()
    except errors.UserError as e:
      failure = str(e)
  data = np.frombuffer(json.dumps([value, failure]).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  data = np.resize(data, size)
  value, failure = json.loads(
    np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes()
  )
  if failure is not None:
    raise errors.UserError(failure)
  return value


def run_name() -> str:
  """A name that the processes of this run share, and no other run has.

  All processes have to call it, in the same order. '' if there is only one.
  """
  # Does not start the devices.
  if (jax_distributed.global_state.num_processes or 1) == 1:
    return ''
  return str(from_first(lambda: secrets.token_hex(16)))


@contextlib.contextmanager
def sole_writer(directory: str) -> Iterator[None]:
  """Makes the first process the sole writer of a directory.

  It writes for all processes of the run.

  Raises:
    errors.UserError: on all processes, if the first cannot be it.
  """
  with contextlib.ExitStack() as stack:
    from_first(
      lambda: stack.enter_context(claimed_directory.sole_writer(directory))
    )
    yield


def check_shared(directory: str) -> None:
  """Raises if not all processes see the same directory.

  Raises:
    errors.UserError: this one sees another.
  """
  if jax.process_count() == 1:
    return
  path = epath.Path(directory) / '.processes'

  def leave_mark() -> str:
    mark = secrets.token_hex(16)
    writers.write_text(path, mark)
    return mark

  mark = from_first(leave_mark)
  with paths.reading(path):
    seen = path.exists() and path.read_text(encoding='utf-8') == mark
  if not seen:
    raise errors.UserError(
      f'config.workdir: {directory} is not the directory that the first '
      'process sees; expected one that all processes share (NFS, gs://)'
    )


class AnyProcess:
  """Whether a number above 0 was given by any process, one call late.

  Late so that no device has to be waited for. All processes have to call it,
  in the same order; all are told the same. One process alone is told at once.
  """

  def __init__(self) -> None:
    self._pending: Array | None = None
    if jax.process_count() > 1:
      mesh = Mesh(np.asarray(jax.devices()), ('all',))
      self._sharding = NamedSharding(mesh, PartitionSpec('all'))
      self._largest = jax.jit(
        jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())
      )

  def __call__(self, number: int) -> int:
    if jax.process_count() == 1:
      return number
    before, self._pending = (
      self._pending,
      self._largest(
        jax.make_array_from_process_local_data(
          self._sharding, np.full(jax.local_device_count(), number, np.int32)
        )
      ),
    )
    return 0 if before is None else int(before)
