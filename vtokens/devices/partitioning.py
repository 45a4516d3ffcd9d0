"""The device mesh, and which array axis lies over which mesh axis."""

import math
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vtokens.host import errors, writers

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis. A logical axis that is not listed is replicated.
LOGICAL_AXIS_RULES: dict[str, str | tuple[str, ...]] = {
  # Activations.
  'batch': ('data', 'fsdp'),
  'batch_over_data': 'data',
  'embed_over_fsdp': 'fsdp',
  # Weights, and what comes out of products with them.
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'embed': 'fsdp',
  # The table and its moments.
  'vtoken_embed': ('fsdp', 'tensor'),
}

TABLE_AXES = ('vtoken', 'vtoken_embed')


def make_mesh(
  shape: Sequence[int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh of all devices.

  Slices of TPUs, and machines with GPUs, are joined by a network that is slower
  than the links inside them. The data axis goes over these first, so that only
  the table's gradient crosses it; where data is no multiple of their number,
  slices of TPUs are refused, and of machines with GPUs it is said.

  Args:
    shape: devices along (data, fsdp, tensor); one of them may be -1: as many
      as are left.
    devices: others than this program's own.

  Returns:
    The mesh, with Auto axes.

  Raises:
    errors.UserError: the shape does not use every device exactly once; or
      data is no multiple of the number of slices of TPUs; or slices or
      machines have unequal numbers of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
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
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  found = [getattr(device, 'slice_index', 0) for device in devices]
  slices = len(set(found))
  if slices == 1:
    return jax.make_mesh(
      tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices
    )
  per_slice = {found.count(number) for number in found}
  if len(per_slice) > 1:
    raise errors.UserError(
      f'{slices} slices or machines have unequal numbers of devices: '
      f'{sorted(per_slice)}; use equal ones'
    )
  # `jax.make_mesh` refuses several slices, which machines with GPUs are, too.
  if sizes[0] % slices == 0:
    placed = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]),
      (slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  elif devices[0].platform == 'tpu':
    raise errors.UserError(
      f'config.mesh.shape: {tuple(sizes)} over {MESH_AXES} on {slices} slices, '
      f'of which data={sizes[0]} is no multiple; weights and activations would '
      'go through the network between them'
    )
  else:
    writers.say(
      f'config.mesh.shape: {tuple(sizes)} has weights over {slices} machines, '
      f'gathered through the network between them; ({slices}, -1, 1) would '
      'keep them inside each'
    )
    placed = np.array(devices).reshape(sizes)
  return Mesh(placed, MESH_AXES, axis_types=axis_types)


def platform(mesh: Mesh | None) -> str:
  """What a program over these devices runs on: cpu, gpu or tpu.

  Not always what compiles it.

  Args:
    mesh: the devices; None for this program's own.
  """
  if mesh is None:
    return str(jax.default_backend())
  return str(mesh.devices.flat[0].platform)


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
  parts: int = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % parts:
    raise errors.UserError(
      'config.data.batch_size / config.data.examples_per_row / '
      f'config.train.accumulation_steps = {rows} rows is no multiple of the '
      f'{parts} devices along data and fsdp of config.mesh.shape'
    )


def is_divisible(mesh: Mesh, axis: str, size: int) -> bool:
  """Whether a dimension can be cut evenly over the devices of its axis.

  Args:
    mesh: the devices.
    axis: logical name of the dimension.
    size: of it.
  """
  return size % _parts(mesh, axis) == 0


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
    if not is_divisible(mesh, axis, size):
      parts = _parts(mesh, axis)
      raise errors.UserError(
        f'config.mesh.shape: {name} has {size} along its axis {axis!r}, no '
        f'multiple of the {parts} devices along {LOGICAL_AXIS_RULES[axis]}'
      )


def constrain(
  x: Shaped[Array, '...'], mesh: Mesh | None, axes: Sequence[str | None]
) -> Shaped[Array, '...']:
  """Says how an array inside a jitted function lies over the mesh.

  Args:
    x: the array.
    mesh: the devices; None leaves it to the compiler.
    axes: logical names of its dimensions, None for one without. Dimensions that
      cannot be cut evenly are left to the compiler.

  Returns:
    The same values.
  """
  if mesh is None or mesh.size == 1:
    return x
  constrained: Array = jax.lax.with_sharding_constraint(
    x,
    NamedSharding(
      mesh,
      PartitionSpec(
        *(
          PartitionSpec.UNCONSTRAINED
          if size % _parts(mesh, axis)
          else _rule(axis)
          for axis, size in zip(axes, x.shape, strict=True)
        )
      ),
    ),
  )
  return constrained


def gather(params: Any, mesh: Mesh | None) -> Any:
  """Weights as the products with them read them: whole along fsdp.

  Inside a jitted function, where it is an all-gather; with
  `keep_products` it is not kept for the backward pass.

  Args:
    params: `nnx.Param`s with logical axes, of one layer or a part of it.
    mesh: over which they lie.
  """
  if mesh is None or mesh.shape['fsdp'] == 1:
    return params

  def whole(param: Any) -> Any:
    axes = (
      None if _rule(axis) == 'fsdp' else axis
      for axis in param.get_metadata('axes')
    )
    return param.replace(constrain(param[...], mesh, tuple(axes)))

  return jax.tree.map(
    whole, params, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )


# Of what a layer computes, what costs more to compute again than to keep.
_KEPT = ('dot_general', 'pallas_call', 'exp')


def keep_products(prim: Any, *unused_args: Any, **unused: Any) -> bool:
  """A `jax.checkpoint` policy: products and attention are kept, little else.

  What lies between them is computed again, which on accelerators is less work
  than to write it to memory and to read it; gathered weights, too, which would
  be the whole model on each device.
  """
  return prim.name in _KEPT


def _rule(axis: str | None) -> str | tuple[str, ...] | None:
  """The mesh axes of a logical axis."""
  return None if axis is None else LOGICAL_AXIS_RULES.get(axis)


def _parts(mesh: Mesh, axis: str | None) -> int:
  """Number of devices that a logical axis is cut over."""
  rule = _rule(axis) or ()
  names = (rule,) if isinstance(rule, str) else rule
  return math.prod(mesh.shape[name] for name in names)


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
  parts: int = mesh.shape['data'] * mesh.shape['fsdp']
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
