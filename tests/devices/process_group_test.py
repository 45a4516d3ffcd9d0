"""How a process finds the others, by its config and its environment."""

import pytest

from vtokens import config
from vtokens.devices import process_group
from vtokens.host import errors

_AUTO = config.Distributed()
_SLURM = {
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
}


def test_alone():
  for environ in (
    {},
    {'SLURM_NTASKS': '4', 'SLURM_JOB_ID': '7'},
    _SLURM | {'SLURM_STEP_NUM_TASKS': '1'},
    {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'},
    {'TPU_WORKER_HOSTNAMES': 'localhost'},
  ):
    assert process_group.find(_AUTO, environ) is None


def test_config_comes_first():
  settings = config.Distributed('a:1', 3, 2)
  environ = {'JAX_COORDINATOR_ADDRESS': 'b:2', 'JAX_PROCESS_ID': '0'}
  group = process_group.find(settings, environ)
  assert group[1:] == ('a:1', 3, 2, True)
  none = config.Distributed(coordinator='none')
  assert process_group.find(none, environ) is None


def test_environment():
  environ = {
    'JAX_COORDINATOR_ADDRESS': 'b:2',
    'JAX_NUM_PROCESSES': '3',
    'JAX_PROCESS_ID': '0',
  }
  assert process_group.find(_AUTO, environ)[1:] == (
    'b:2',
    3,
    0,
    True,
  )
  # The numbers may be the launcher's.
  del environ['JAX_NUM_PROCESSES'], environ['JAX_PROCESS_ID']
  group = process_group.find(_AUTO, environ | _SLURM)
  assert group[1:] == ('b:2', 4, 2, True)


@pytest.mark.parametrize(
  'per_node, visible, all_devices',
  [
    ('1(x4)', '0,1,2,3', True),
    ('2(x2)', '0,1,2,3', False),
    ('2(x2)', None, False),
    # Slurm has given each task its GPU.
    ('2(x2)', '3', True),
    ('2,1(x2)', '0,1', False),
  ],
)
def test_slurm(per_node, visible, all_devices):
  environ = _SLURM | {'SLURM_STEP_TASKS_PER_NODE': per_node}
  if visible is not None:
    environ['CUDA_VISIBLE_DEVICES'] = visible
  group = process_group.find(_AUTO, environ)
  assert group == ('Slurm', None, 4, 2, all_devices)


def test_open_mpi():
  environ = {
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
  }
  group = process_group.find(_AUTO, environ)
  assert group == ('Open MPI', None, 2, 1, False)


def test_tpu():
  for environ in (
    {'TPU_WORKER_HOSTNAMES': 'a,b'},
    {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'},
  ):
    group = process_group.find(_AUTO, environ)
    assert group == process_group.ProcessGroup('TPU pod')


@pytest.mark.parametrize(
  'settings, environ, match',
  [
    (config.Distributed('a:1'), {}, 'a:1, but the number of processes'),
    (config.Distributed('a:1', 2, 2), {}, 'process 2 of 2: .* 0 to 1'),
    (config.Distributed('a', 2, 1), {}, "'a', expected HOST:PORT"),
    (
      _AUTO,
      {'JAX_COORDINATOR_ADDRESS': 'a:1'},
      'a:1, but the number of processes',
    ),
    (
      _AUTO,
      {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': 'x'},
      "JAX_NUM_PROCESSES='x': expected a number",
    ),
  ],
)
def test_mistakes(settings, environ, match):
  with pytest.raises(errors.UserError, match=match):
    process_group.find(settings, environ)
