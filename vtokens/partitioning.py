"""The device mesh, and which array axis lies over which mesh axis."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vtokens import errors

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis. A logical axis that is not listed is replicated.
LOGICAL_AXIS_RULES = {
  'batch': ('data', 'fsdp'),
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'embed': 'fsdp',
  'vtoken_embed': ('fsdp', 'tensor'),
}

TABLE_AXES = ('vtoken', 'vtoken_embed')


def make_mesh(shape: Sequence[int]) -> Mesh:
  """A mesh of all devices.

  Args:
    shape: devices along (data, fsdp, tensor); one of them may be -1: as many
      as are left.

  Returns:
    The mesh, with Auto axes.

  Raises:
    errors.UserError: the shape does not use every device exactly once.
  """
  count = jax.device_count()
  sizes = list(shape)
  if -1 in sizes:
    known = 1
    for size in sizes:
      known *= 1 if size == -1 else size
    sizes[sizes.index(-1)] = count // known
  product = 1
  for size in sizes:
    product *= size
  if product != count or min(sizes) < 1:
    raise errors.UserError(
      f'config.mesh.shape: {tuple(shape)} over {MESH_AXES} does not use each '
      f'of the {count} devices exactly once'
    )
  return jax.make_mesh(
    tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )


def named_sharding(mesh: Mesh, axes: Sequence[str]) -> NamedSharding:
  """Sharding of an array whose dimensions have these logical names."""
  return NamedSharding(
    mesh, PartitionSpec(*(LOGICAL_AXIS_RULES.get(axis) for axis in axes))
  )


def check_batch(mesh: Mesh, rows: int) -> None:
  """Raises if rows cannot be dealt out evenly over the mesh.

  Args:
    mesh: the devices.
    rows: of a (micro)batch.

  Raises:
    errors.UserError: the number is no multiple of the data and fsdp devices.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % parts:
    raise errors.UserError(
      'config.data.batch_size / config.data.examples_per_row / '
      f'config.train.accumulation_steps = {rows} rows is no multiple of the '
      f'{parts} devices along data and fsdp of config.mesh.shape'
    )


def check_divisible(
  mesh: Mesh, axes: Sequence[str], shape: Sequence[int], name: str
) -> None:
  """Raises if an array cannot be cut evenly along its sharded dimensions.

  Args:
    mesh: the devices.
    axes: logical names of the dimensions.
    shape: their sizes.
    name: of the array, for the error.

  Raises:
    errors.UserError: a dimension is no multiple of its devices.
  """
  for axis, size in zip(axes, shape, strict=True):
    rule = LOGICAL_AXIS_RULES.get(axis, ())
    parts = 1
    for mesh_axis in (rule,) if isinstance(rule, str) else rule:
      parts *= mesh.shape[mesh_axis]
    if size % parts:
      raise errors.UserError(
        f'config.mesh.shape: {name} has {size} along its axis {axis!r}, no '
        f'multiple of the {parts} devices along {rule}'
      )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
  """Which rows of a batch lie on this process's devices, ascending."""
  sharding = named_sharding(mesh, ('batch',))
  where = sharding.addressable_devices_indices_map((rows,)).values()
  return np.unique([np.arange(rows)[index or ...] for index in where])


def shard_rows(arrays: Any, mesh: Mesh, rows: int) -> Any:
  """Like `shard_batch`, of arrays that have all rows on each process."""
  local = local_rows(mesh, rows)
  return shard_batch(jax.tree.map(lambda x: x[local], arrays), mesh, rows)


def round_up_rows(mesh: Mesh, rows: int) -> int:
  """The next number of rows that can be dealt out evenly over the mesh."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  return -(-rows // parts) * parts


def shard_batch(batch: Any, mesh: Mesh, rows: int) -> Any:
  """Puts a batch on the mesh, its first dimension over (data, fsdp).

  Args:
    batch: arrays of this process's rows; see `local_rows`.
    mesh: the devices.
    rows: of the whole batch.

  Returns:
    Global arrays.
  """
  sharding = named_sharding(mesh, ('batch',))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (rows, *x.shape[1:])
    ),
    batch,
  )
