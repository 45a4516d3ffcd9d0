"""How a process reaches the other processes of its program."""

import importlib.util
import pathlib
import typing
from collections.abc import Mapping

from vtokens import config
from vtokens.host import errors

# Name of the group of a TPU VM, which may be a pod of its own.
TPU_VM = 'TPU VM'


class ProcessGroup(typing.NamedTuple):
  """How to reach the other processes; JAX finds out what is None.

  Attributes:
    name: where the values come from, for messages.
    coordinator: HOST:PORT of process 0.
    num_processes: number of processes.
    process_id: number of this process.
    all_devices: whether the process uses all devices that it can see; otherwise
      JAX gives it one, by its number on the machine.
  """

  name: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  all_devices: bool = True


# Environment variables of the launchers that JAX can ask for a coordinator:
# number of processes, number of this one, processes on this machine.
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


def find(
  settings: config.Distributed, environ: Mapping[str, str]
) -> ProcessGroup | None:
  """Finds how this process reaches the others; None if it is alone.

  Looks in this order: the config; JAX_COORDINATOR_ADDRESS, with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID or else the launcher's numbers; Slurm and
  Open MPI with more than one task; a TPU pod or multi-slice (GKE, or a TPU VM).

  Args:
    settings: of the config.
    environ: environment variables.

  Raises:
    errors.UserError: a value is missing or not a number.
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
    return ProcessGroup(TPU_VM)
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
      f'{name}: {coordinator}, but the number of processes or that of this '
      'one is missing; set config.distributed.num_processes and process_id, '
      'or JAX_NUM_PROCESSES and JAX_PROCESS_ID'
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
  """Reads the variables of Slurm or Open MPI, without the coordinator."""
  for name, variables in _LAUNCHERS.items():
    total, number, here = variables
    if total not in environ or number not in environ:
      continue
    # Slurm writes '2(x3),1' for two on each of three machines, one on another.
    alone = environ.get(here, '1').split('(')[0].split(',')[0] == '1'
    # The launcher may have assigned GPUs to processes already.
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
