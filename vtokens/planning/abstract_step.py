"""Shapes, dtypes and shardings of a step's arguments, without values."""

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import optax

from vtokens.data import batch as batch_lib
from vtokens.data.batch import Batch
from vtokens.devices import partitioning
from vtokens.method.steps import TrainState
from vtokens.method.trainable import Trainable, Values
from vtokens.method.virtual_tokens import TABLE
from vtokens.models import quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig


def base(
  config: DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh,
  method: str = 'none',
) -> tuple[nnx.GraphDef[Decoder], nnx.State[str, Any]]:
  """A decoder's structure, and its weights as shapes over the mesh.

  Args:
    config: the architecture.
    dtype: dtype of its weights.
    mesh: the devices.
    method: quantisation of its matrices; see `config.Base.quantize`.

  Raises:
    errors.UserError: a weight does not divide evenly over the mesh.
  """
  if method != 'none':
    # The number of heads must divide, too. Quantised matrices have no such
    # axis.
    base(config, dtype, mesh)
  graph, params = nnx.split(abstract_decoder(config, dtype, mesh, method))
  placed = []
  for path, variable in nnx.to_flat_state(params):
    axes = variable.get_metadata('axes')
    if len(axes) < len(variable.shape):
      axes = ('layers', *axes)
    name = '.'.join(map(str, path))
    partitioning.check_divisible(mesh, axes, variable.shape, name)
    shape = jax.ShapeDtypeStruct(
      variable.shape,
      variable.dtype,
      sharding=partitioning.named_sharding(mesh, axes),
    )
    placed.append((path, variable.replace(shape)))
  return graph, nnx.from_flat_state(placed)


def matrix_bytes(config: DecoderConfig, dtype: jnp.dtype, method: str) -> float:
  """Bytes of the matrices that tokens are multiplied with, not sharded.

  The head is left out.

  Args:
    config: the architecture.
    dtype: dtype of its weights.
    method: see `base`.
  """
  params = nnx.state(abstract_decoder(config, dtype, None, method))
  return sum(
    quantize.num_bytes(param)
    for path, param in nnx.to_flat_state(params)
    if path[0] != 'head' and quantize.matrix_inputs(param)
  )


def state(
  optimizer: optax.GradientTransformation,
  shapes: Values,
  mesh: jax.sharding.Mesh,
  trainable: Trainable = TABLE,
) -> TrainState:
  """Shapes and shardings of the training state.

  Args:
    optimizer: optimiser of the trained values.
    shapes: shapes of the trained values; see `Trainable.shapes`.
    mesh: the devices; moments are sharded like the values.
    trainable: the kind of trained values.

  Raises:
    errors.UserError: an array does not divide evenly over the mesh.
  """

  def placed(shape: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> Any:
    partitioning.check_divisible(mesh, axes, shape.shape, 'virtual tokens')
    return shape.update(sharding=partitioning.named_sharding(mesh, axes))

  trained = jax.tree.map(placed, shapes, trainable.axes())
  whole = partitioning.replicated(mesh)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  moments = jax.eval_shape(optimizer.init, trained)
  shardings = optax.tree_utils.tree_map_params(
    optimizer,
    lambda _, value: value.sharding,
    moments,
    trained,
    transform_non_params=lambda _: whole,
  )
  return TrainState(
    trained=trained,
    opt_state=jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      moments,
      shardings,
    ),
    step=step,
  )


def batch(
  rows: int,
  shape: tuple[int, int],
  num_targets: int,
  mesh: jax.sharding.Mesh,
  *,
  per_row: int,
  draws: int = 1,
  taught: bool = False,
  teacher: Batch | None = None,
  spans: int = 0,
) -> Batch:
  """A training batch.

  Args:
    rows: rows of the batch, over all devices.
    shape: prefix and suffix length of a row.
    num_targets: targets of a row.
    mesh: the devices.
    per_row: examples of a row.
    draws: suffixes of each example.
    taught: whether targets have a teacher.
    teacher: its batch, if it has a pass of its own.
    spans: suffixes of a row if virtual tokens are not in them; else 0.
  """
  sharding = partitioning.named_sharding(mesh, ('batch',))

  # Any, because the annotations of `Batch` require arrays.
  def ids(size: int) -> Any:
    return jax.ShapeDtypeStruct((rows, size), jnp.int32, sharding=sharding)

  prefix, suffix = (ids(size) for size in shape)
  targets = ids(num_targets)
  return batch_lib.make(
    per_row=per_row,
    draws=draws,
    prefix=prefix,
    prefix_positions=prefix,
    prefix_segments=prefix,
    suffix=suffix,
    suffix_positions=suffix,
    suffix_segments=suffix,
    suffix_parents=suffix,
    targets=targets,
    target_index=targets,
    teacher_index=targets if taught else None,
    teacher=teacher,
    spans=batch_lib.Spans(ids(spans), ids(spans)) if spans else None,
  )
