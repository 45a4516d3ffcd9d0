"""Meshes and what fits them; several devices in a subprocess."""

import dataclasses

import device_programs
import numpy as np
import pytest

from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.planning import aot

SCRIPT = """
import jax
import numpy as np
import pytest
from vtokens.host import errors
from vtokens.devices import partitioning

mesh = partitioning.make_mesh((2, -1, 2))
assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}

for shape in ((3, 1, 1), (2, 2, 3), (-1, 3, 1), (2, 2, 1), (16, 1, 1)):
  with pytest.raises(errors.UserError, match='config.mesh.shape'):
    partitioning.make_mesh(shape)

partitioning.check_batch(mesh, 8)
with pytest.raises(errors.UserError, match='= 6 .* 4 devices'):
  partitioning.check_batch(mesh, 6)

check = partitioning.check_divisible
check(mesh, ('vtoken', 'vtoken_embed'), (7, 64), 'the table')
with pytest.raises(errors.UserError, match='the table has 66 .* 4 devices'):
  check(mesh, ('vtoken', 'vtoken_embed'), (7, 66), 'the table')
with pytest.raises(errors.UserError, match='k_proj has 3 .*kv_heads'):
  check(mesh, ('embed', 'kv_heads', 'head'), (64, 3, 5), 'k_proj')

assert partitioning.local_rows(mesh, 8).tolist() == list(range(8))
batch = {'x': np.arange(16).reshape(8, 2), 'none': None}
rows = partitioning.shard_batch(batch, mesh, 8)['x']
assert {s.data.shape for s in rows.addressable_shards} == {(2, 2)}
np.testing.assert_array_equal(rows, batch['x'])
"""


def test_eight_devices():
  device_programs.run(SCRIPT)


def test_one_device_fits_everything():
  mesh = partitioning.make_mesh((1, -1, 1))
  partitioning.check_batch(mesh, 7)
  partitioning.check_divisible(mesh, ('embed', 'kv_heads'), (577, 3), 'x')


@pytest.mark.parametrize(
  'shape', [(1, 0, 1), (0, -1, 1), (-1, -1, 1), (-2, -1, 1), (3, -1, 1)]
)
def test_sizes_that_do_not_use_every_device_once(shape):
  with pytest.raises(errors.UserError) as e:
    partitioning.mesh_sizes(shape, 8)
  assert f'config.mesh.shape: {shape} ' in str(e.value)


@dataclasses.dataclass(frozen=True)
class _Device:
  """What a mesh is made by; the slice of a GPU is its machine."""

  id: int
  slice_index: int
  platform: str = 'gpu'
  device_kind: str = 'NVIDIA H100 80GB HBM3'
  process_index: int = 0


def _slices(mesh):
  return np.vectorize(lambda device: device.slice_index)(mesh.devices)


@pytest.mark.parametrize('shape', [(2, 4, 1), (4, 2, 1), (4, 1, 2), (-1, 1, 2)])
def test_data_goes_over_slices_first(shape):
  # In no order.
  devices = [_Device(i, i % 2) for i in range(8)]
  mesh = partitioning.make_mesh(shape, devices)
  slices = _slices(mesh)
  assert len(set(mesh.devices.flat)) == 8
  half = mesh.shape['data'] // 2
  assert set(slices[:half].flat) == {0}
  assert set(slices[half:].flat) == {1}


def test_machines_with_gpus_may_share_weights(capsys):
  """Slowly, but a mesh that cannot be had otherwise is not refused."""
  devices = [_Device(i, i // 4) for i in range(8)]
  mesh = partitioning.make_mesh((1, 8, 1), devices)
  assert mesh.devices.ravel().tolist() == devices
  assert '(2, -1, 1) would keep them inside each' in capsys.readouterr().out


def test_machines_with_unequal_numbers_of_devices():
  devices = [_Device(i, int(i > 4)) for i in range(8)]
  with pytest.raises(errors.UserError, match=r'unequal numbers .*\[3, 5\]'):
    partitioning.make_mesh((8, 1, 1), devices)


def test_slices_of_tpus_may_not():
  devices = aot.find_target('v5e:2x2', num_slices=2).devices
  assert set(_slices(partitioning.make_mesh((2, 2, 2), devices))[0].flat) == {0}
  with pytest.raises(errors.UserError, match=r'data=1 is no .* 2 slices'):
    partitioning.make_mesh((1, 8, 1), devices)
