"""The device mesh, and which array axis is sharded over which mesh axis."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import flax.nnx as nnx
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vtokens.host import errors, writers

# A pytree of arrays.
_Arrays = TypeVar('_Arrays')

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis. A logical axis that is not listed is replicated.
LOGICAL_AXIS_RULES: dict[str, str | tuple[str, ...]] = {
  # Activations.
  'batch': ('data', 'fsdp'),
  'batch_over_data': 'data',
  'embed_over_fsdp': 'fsdp',
  # Weights, and the results of products with them.
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'expert': 'tensor',
  'embed': 'fsdp',
  'latent': 'fsdp',
  # The table and its moments.
  'vtoken_embed': ('fsdp', 'tensor'),
}


def make_mesh(
  shape: Sequence[int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes a mesh of all devices.

  The network between slices of TPUs, or between machines with GPUs, is slower
  than the links inside them. So the data axis is laid over slices or machines
  first, and only the table's gradient crosses the network. If data is not a
  multiple of their number, slices of TPUs are refused; machines with GPUs get a
  notice.

  Args:
    shape: numbers of devices along (data, fsdp, tensor); one may be -1, for all
      remaining devices.
    devices: the devices; None for all of this program.

  Returns:
    The mesh, with Auto axes.

  Raises:
    errors.UserError: the shape does not use every device exactly once, data is
      not a multiple of the number of slices of TPUs, or slices or machines have
      unequal numbers of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = mesh_sizes(shape, len(devices))
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  found = [getattr(device, 'slice_index', 0) for device in devices]
  slices = len(set(found))
  if slices == 1:
    return jax.make_mesh(
      sizes, MESH_AXES, axis_types=axis_types, devices=devices
    )
  per_slice = {found.count(number) for number in found}
  if len(per_slice) > 1:
    raise errors.UserError(
      f'{slices} slices or machines have unequal numbers of devices: '
      f'{sorted(per_slice)}; use equal ones'
    )
  # `jax.make_mesh` refuses several slices, and counts machines with GPUs so.
  if sizes[0] % slices == 0:
    placed = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]),
      (slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  elif devices[0].platform == 'tpu':
    raise errors.UserError(
      f'config.mesh.shape: {sizes} over {MESH_AXES}: data={sizes[0]} '
      f'is no multiple of the {slices} slices; weights and activations would '
      'go through the network between them'
    )
  else:
    writers.say(
      f'config.mesh.shape: {sizes} shards weights over {slices} '
      f'machines and gathers them through the network; ({slices}, -1, 1) would '
      'keep them inside each machine'
    )
    placed = np.array(devices).reshape(sizes)
  return Mesh(placed, MESH_AXES, axis_types=axis_types)


def mesh_sizes(shape: Sequence[int], count: int) -> tuple[int, ...]:
  """The shape of a mesh, with a number in the place of -1.

  Args:
    shape: see `make_mesh`.
    count: number of devices.

  Raises:
    errors.UserError: the shape does not use every device exactly once.
  """
  sizes = list(shape)
  if -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    # A size of 0 has no rest; the check below refuses it.
    sizes[sizes.index(-1)] = count // known if known else 0
  if math.prod(sizes) != count or min(sizes) < 1:
    raise errors.UserError(
      f'config.mesh.shape: {tuple(shape)} over {MESH_AXES} does not use each '
      f'of the {count} devices exactly once'
    )
  return tuple(sizes)


def platform(mesh: Mesh | None) -> str:
  """Returns the platform that a program runs on: cpu, gpu or tpu.

  It may differ from the platform that compiles the program.

  Args:
    mesh: the devices; None for those of this program.
  """
  if mesh is None:
    return str(jax.default_backend())
  return str(mesh.devices.flat[0].platform)


def named_sharding(mesh: Mesh, axes: Sequence[str]) -> NamedSharding:
  """Returns the sharding of an array with these logical axes."""
  return NamedSharding(
    mesh, PartitionSpec(*(LOGICAL_AXIS_RULES.get(axis) for axis in axes))
  )


def check_batch(mesh: Mesh, rows: int) -> None:
  """Raises if rows cannot be divided evenly among devices.

  Args:
    mesh: the devices.
    rows: number of rows of a (micro)batch.

  Raises:
    errors.UserError: it is not a multiple of the devices along data and fsdp.
  """
  parts: int = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % parts:
    raise errors.UserError(
      'config.data.batch_size / config.data.examples_per_row / '
      f'config.train.accumulation_steps = {rows} rows is no multiple of the '
      f'{parts} devices along data and fsdp of config.mesh.shape'
    )


def is_divisible(mesh: Mesh, axis: str, size: int) -> bool:
  """Whether a dimension can be divided evenly among its devices.

  Args:
    mesh: the devices.
    axis: logical name of the dimension.
    size: size of the dimension.
  """
  return size % _parts(mesh, axis) == 0


def check_divisible(
  mesh: Mesh, axes: Sequence[str], shape: Sequence[int], name: str
) -> None:
  """Raises if a sharded dimension cannot be divided evenly.

  Args:
    mesh: the devices.
    axes: logical names of the array's dimensions.
    shape: sizes of the dimensions.
    name: name of the array, for the message.

  Raises:
    errors.UserError: a dimension is not a multiple of its number of devices.
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
  """Fixes the sharding of an array inside a jitted function.

  Args:
    x: the array.
    mesh: the devices; None leaves the sharding to the compiler.
    axes: logical names of the dimensions; None for an unsharded one. The
      compiler decides about dimensions that cannot be divided evenly.

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
  """Gathers weights along fsdp, as products need them.

  To be called inside a jitted function. With `keep_products`, gathered weights
  are not kept for the backward pass.

  Args:
    params: `nnx.Param`s with logical axes, of one layer or a part of it.
    mesh: the devices that they are sharded over.
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


# Operations whose results cost more to recompute than to keep.
# `name` marks products that are no operation of their own; see
# `models.mlps.grouped`.
_KEPT = ('dot_general', 'pallas_call', 'exp', 'name')


def keep_products(prim: Any, *unused_args: Any, **unused: Any) -> bool:
  """A `jax.checkpoint` policy that keeps products, attention and little else.

  Other results are recomputed, which takes accelerators less time than writing
  and reading them. Gathered weights are gathered again: kept, they would be the
  whole model on each device.
  """
  return prim.name in _KEPT


def _rule(axis: str | None) -> str | tuple[str, ...] | None:
  """Returns the mesh axes of a logical axis."""
  return None if axis is None else LOGICAL_AXIS_RULES.get(axis)


def _parts(mesh: Mesh, axis: str | None) -> int:
  """Counts the devices that a logical axis is sharded over."""
  rule = _rule(axis) or ()
  names = (rule,) if isinstance(rule, str) else rule
  return math.prod(mesh.shape[name] for name in names)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
  """Finds the rows of a batch on this process's devices, in rising order."""
  sharding = named_sharding(mesh, ('batch',))
  where = sharding.addressable_devices_indices_map((rows,)).values()
  return np.unique([np.arange(rows)[index or ...] for index in where])


def shard_rows(arrays: _Arrays, mesh: Mesh, rows: int) -> _Arrays:
  """Like `shard_batch`, for arrays that have all rows on each process."""
  local = local_rows(mesh, rows)
  own: _Arrays = jax.tree.map(lambda x: x[local], arrays)
  return shard_batch(own, mesh, rows)


def round_up_rows(mesh: Mesh, rows: int) -> int:
  """Rounds a number of rows up to one that devices can divide evenly."""
  parts: int = mesh.shape['data'] * mesh.shape['fsdp']
  return -(-rows // parts) * parts


def shard_batch(batch: _Arrays, mesh: Mesh, rows: int) -> _Arrays:
  """Puts a batch on the mesh, its first dimension sharded over (data, fsdp).

  Args:
    batch: arrays of this process's rows; see `local_rows`.
    mesh: the devices.
    rows: number of rows of the whole batch.

  Returns:
    Global arrays.
  """
  sharding = named_sharding(mesh, ('batch',))
  whole: _Arrays = jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (rows, *x.shape[1:])
    ),
    batch,
  )
  return whole
