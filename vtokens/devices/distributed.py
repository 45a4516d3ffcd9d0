"""Several processes as one program: they meet, agree and end together.

Without a coordinator there is one process, and nothing here has an effect.
"""

import contextlib
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

# Processes talk through its key-value store before and without their devices.
# JAX has no public name for it; Orbax uses it in the same way.
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vtokens import config
from vtokens.devices import process_group
from vtokens.devices.process_group import ProcessGroup
from vtokens.host import errors, locks, paths, stopping, writers

# Seconds between two checks of the other processes.
_TICK = 1.0
# Seconds that a failed process waits for the others to read why.
_FAREWELL = 10.0
_FOREVER_MS = 7 * 24 * 3600 * 1000
# Ends the message of a process that was stopped before it had to save.
_CONTINUES = 'the same command continues'
_T = typing.TypeVar('_T')
_ALIVE, _FAILED, _READ = 'vtokens/alive/', 'vtokens/failed/', 'vtokens/read/'

# Whether a `session` with other processes is open.
_watched = False


def may_leave() -> bool:
  """Whether this process can stop by itself, at any point.

  It can if it is alone, or if its `session` ends the others. Processes that a
  user's script joined would wait for it forever.
  """
  return _watched or jax.process_count() == 1


@contextlib.contextmanager
def session(settings: config.Distributed) -> Iterator[None]:
  """Joins the other processes, if there are any, while the context is open.

  If a process fails, the others end within `settings.failure_timeout` and some
  seconds, each with a message that names it. Enter it before JAX computes
  anything.

  Args:
    settings: of the config.

  Raises:
    errors.UserError: the others cannot be reached.
  """
  global _watched
  group = process_group.find(settings, os.environ)
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
  """Connects to the other processes.

  Raises:
    errors.UserError: they cannot be reached.
  """
  where = '' if group.coordinator is None else f' at {group.coordinator}'
  try:
    jax.distributed.initialize(
      group.coordinator,
      group.num_processes,
      group.process_id,
      # An empty list means all devices.
      local_device_ids=[] if group.all_devices else None,
      initialization_timeout=settings.start_timeout,
      shutdown_timeout_seconds=settings.start_timeout,
    )
  # JAX raises either if it finds no coordinator, or none answers.
  except (ValueError, RuntimeError) as e:
    if group.name == process_group.TPU_VM and isinstance(e, ValueError):
      return  # The TPU of this machine belongs to no pod.
    raise errors.UserError(
      f'the processes of this run ({group.name}) did not meet{where} within '
      f'config.distributed.start_timeout={settings.start_timeout} s: '
      f'{str(e).splitlines()[0]}. '
      'Check JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or '
      'run one process alone with --config.distributed.coordinator=none'
    ) from None


class _Watch(threading.Thread):
  """Shows that this process is alive, and ends it if another one is not.

  Uses the key-value store of the coordinator, process 0. If that process is
  killed, JAX itself ends the others at once.

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
    # Process -> its last sign of life, and when that came.
    self._seen = {
      str(number): ('', time.monotonic())
      for number in range(jax.process_count())
    }

  def run(self) -> None:
    """Watches the others until `leave_together`."""
    while not self._stopped.wait(_TICK):
      try:
        self._show_alive()
        failed = self._first_failure()
      # Process 0 is gone: JAX says so and ends this process.
      except jax.errors.JaxRuntimeError:
        return
      if failed is not None and not self._stopped.is_set():
        self._end(*failed)

  def leave_together(self) -> None:
    """Waits until all processes are here, and disconnects."""
    self._client.wait_at_barrier('vtokens/end', _FOREVER_MS)
    self._stopped.set()
    jax.distributed.shutdown()

  def fail(self, failure: BaseException, code: int = 1) -> typing.NoReturn:
    """Tells the others that this process has failed, and ends it.

    It skips the interpreter's exit, which would wait for all processes.
    """
    if isinstance(failure, jax.errors.JaxRuntimeError | ValueError):
      # If another process is killed, communication fails here first. Give the
      # watch time to find out which, and to end this process.
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
    """Returns message and exit code of the first process that failed."""
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
    """Ends this process; process 0, which holds the messages, waits."""
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
  """Whether this process writes and prints for all."""
  return jax_distributed.global_state.process_id == 0


def fetch(array: Shaped[Array, '...']) -> Shaped[np.ndarray, '...']:
  """Copies a whole array to every process, however it is sharded.

  All processes must call it, in the same order.
  """
  if array.is_fully_addressable:
    return np.asarray(jax.device_get(array))
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def from_first(function: Callable[[], _T]) -> _T:
  """Calls a function on the first process, and returns its result on all.

  All processes must call it, in the same order.

  Args:
    function: returns a JSON value.

  Raises:
    errors.UserError: on all processes, if the function raises it.
  """
  if jax.process_count() == 1:
    return function()
  value: Any = None
  failure = None
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
  result: _T = value
  return result


def run_name() -> str:
  """Makes a name that the processes of this run share and no other run has.

  All processes must call it, in the same order. It is '' for a single process.
  """
  # Does not start the devices.
  if (jax_distributed.global_state.num_processes or 1) == 1:
    return ''
  return from_first(lambda: secrets.token_hex(16))


@contextlib.contextmanager
def sole_writer(directory: str) -> Iterator[None]:
  """Makes the first process the sole writer of a directory.

  It writes for all processes of the run.

  Raises:
    errors.UserError: on all processes, if another program writes there.
  """
  with contextlib.ExitStack() as stack:
    from_first(lambda: stack.enter_context(locks.sole_writer(directory)))
    yield


def check_shared(directory: str) -> None:
  """Checks that all processes see the same directory.

  Raises:
    errors.UserError: this process sees another.
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
  """The largest number that any process gave, one call late.

  It is late so that nobody waits for a device. All processes must call it, in
  the same order; all get the same number. A single process gets its own number
  at once.
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
