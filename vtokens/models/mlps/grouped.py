"""Products of rows with the matrices of their groups, without a capacity.

Rows are sorted by group, so that each matrix meets a block of rows. Rows of no
group come last and are not multiplied.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Shaped

from vtokens.models import quantize

# Least and most rows that are multiplied at a time. Few rows for each group
# make small blocks, so that little is multiplied in vain.
_BLOCKS = {'cpu': (8, 64), 'gpu': (16, 512)}


class Order(NamedTuple):
  """Rows sorted by group.

  Attributes:
    sources: for each sorted row, its row before sorting.
    places: for each row before sorting, its sorted row.
    groups: group of each sorted row; the number of groups for a row that has
      none.
    sizes: rows of each group.
  """

  sources: Int[Array, 'M']
  places: Int[Array, 'M']
  groups: Int[Array, 'M']
  sizes: Int[Array, 'E']


def sort(groups: Int[Array, 'M'], count: int) -> Order:
  """Sorts rows by group.

  Args:
    groups: group of each row. Below 0, or `count` or more, stands for none.
    count: number of groups.
  """
  groups = jnp.where((groups >= 0) & (groups < count), groups, count)
  sources = jnp.argsort(groups, stable=True).astype(jnp.int32)
  places = jnp.argsort(sources).astype(jnp.int32)
  ordered = groups[sources]
  ends = jnp.searchsorted(ordered, jnp.arange(count), side='right')
  sizes = jnp.diff(ends, prepend=0).astype(jnp.int32)
  return Order(sources, places, ordered, sizes)


# Both directions gather. A scatter-add would sum in an order that GPUs do not
# fix.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(
  x: Float[Array, 'N D'], order: Order, copies: int
) -> Float[Array, 'M D']:
  """Copies each row for each of its groups, and sorts the copies.

  Args:
    x: rows.
    order: of `copies` groups for each row.
    copies: groups of a row.
  """
  return x[order.sources // copies]


def _dispatch_forward(
  x: Array, order: Order, copies: int
) -> tuple[Array, Order]:
  return x[order.sources // copies], order


def _dispatch_backward(
  copies: int, order: Order, grad: Array
) -> tuple[Array, None]:
  grads = grad[order.places].reshape(-1, copies, grad.shape[-1])
  return grads.sum(axis=1, dtype=jnp.float32).astype(grad.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def combine(
  y: Float[Array, 'M D'], order: Order, copies: int
) -> Float[Array, 'N D']:
  """Sums the sorted copies of each row; the transpose of `dispatch`."""
  return _dispatch_backward(copies, order, y)[0]


def _combine_forward(
  y: Array, order: Order, copies: int
) -> tuple[Array, Order]:
  return _dispatch_backward(copies, order, y)[0], order


def _combine_backward(
  copies: int, order: Order, grad: Array
) -> tuple[Array, None]:
  return grad[order.sources // copies], None


combine.defvjp(_combine_forward, _combine_backward)


def product(
  x: Float[Array, 'M C'],
  weight: Any,
  order: Order,
  platform: str,
) -> Float[Array, 'M O']:
  """Multiplies each sorted row with the matrix of its group.

  Only x has a gradient.

  Args:
    x: sorted rows.
    weight: matrices of all groups: array of shape [E, C, O], or a quantised
      `quantize.Matrix`.
    order: the groups of the rows.
    platform: cpu, gpu or tpu.

  Returns:
    The products; 0 in rows of no group.
  """
  if isinstance(weight, quantize.Matrix):
    scales = None if weight.scales is None else weight.scales[...]
    parts = (weight.values[...], scales)
  else:
    parts = (weight[...], None)
  # Kept for the backward pass like other products; see `keep_products`.
  y: Array = checkpoint_name(_product(x, parts, order, platform), 'product')
  return y


_Parts = tuple[Array, Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: Array, parts: _Parts, order: Order, platform: str) -> Array:
  return _multiply(x, parts, order, platform, back=False)


def _forward(
  x: Array, parts: _Parts, order: Order, platform: str
) -> tuple[Array, tuple[_Parts, Order]]:
  return _multiply(x, parts, order, platform, back=False), (parts, order)


def _backward(
  platform: str, kept: tuple[_Parts, Order], grad: Array
) -> tuple[Array, None, None]:
  return _multiply(grad, *kept, platform, back=True), None, None


_product.defvjp(_forward, _backward)


def _multiply(
  x: Array, parts: _Parts, order: Order, platform: str, *, back: bool
) -> Array:
  """Products with the matrices or, to go back, with their transposes."""
  run = {'cpu': _in_blocks, 'gpu': _in_batches}.get(platform, _ragged)
  y = run(x, parts, order, back)
  inside = order.groups < len(order.sizes)
  return jnp.where(inside[:, None], y, 0)


def _in_blocks(x: Array, parts: _Parts, order: Order, back: bool) -> Array:
  """One block of rows after the other.

  `ragged_dot` multiplies each row with each matrix on CPUs.
  """
  rows = len(x)
  if 2 * rows <= len(order.sizes):
    return _one_by_one(x, parts, order, back)
  block = _block_size(rows, len(order.sizes), 'cpu')
  counts = -(-order.sizes // block)
  last = jnp.cumsum(counts)
  starts = jnp.cumsum(order.sizes) - order.sizes
  padded = jnp.pad(x, ((0, block), (0, 0)))
  multiply = _one(back)

  def body(i: Array, y: Array) -> Array:
    group = jnp.searchsorted(last, i, side='right')
    start = starts[group] + (i - last[group] + counts[group]) * block
    own = jax.tree.map(lambda part: part[group], parts)
    some = multiply(jax.lax.dynamic_slice_in_dim(padded, start, block), *own)
    # A last block of a group runs into the rows of the next group, which come
    # later and overwrite it.
    return jax.lax.dynamic_update_slice_in_dim(y, some, start, axis=0)

  width = parts[0].shape[1 if back else 2]
  y = jnp.zeros((rows + block, width), x.dtype)
  done: Array = jax.lax.fori_loop(0, last[-1], body, y)
  return done[:rows]


def _one_by_one(x: Array, parts: _Parts, order: Order, back: bool) -> Array:
  """Each row with a copy of its group's matrix, for steps of generation.

  The matrices are a slice of a stack of layers. XLA joins this gather with the
  slice and reads the matrices of the rows alone. Before a loop it copies the
  slice, which has the matrices of all groups.
  """
  group = jnp.minimum(order.groups, len(order.sizes) - 1)
  own = jax.tree.map(
    lambda part: part.at[group].get(mode='promise_in_bounds'), parts
  )
  y: Array = jax.vmap(_one(back))(x[:, None], *own)[:, 0]
  return y


def _in_batches(x: Array, parts: _Parts, order: Order, back: bool) -> Array:
  """All blocks of rows at once, each with a copy of its group's matrix.

  JAX's `ragged_dot` multiplies each row with each matrix on GPUs, too, and
  keeps a copy of the rows for each group.
  """
  rows, groups = len(x), len(order.sizes)
  block = _block_size(rows, groups, 'gpu')
  counts = -(-order.sizes // block)
  last = jnp.cumsum(counts)
  starts = jnp.cumsum(order.sizes) - order.sizes
  # As many as there can be: each group's last block may be partly empty.
  number = jnp.arange(-(-rows // block) + min(groups, rows))
  group = jnp.minimum(jnp.searchsorted(last, number, side='right'), groups - 1)
  first = starts[group] + (number - last[group] + counts[group]) * block
  # Beyond the rows of the group are rows whose products nobody reads.
  sources = jnp.clip(first[:, None] + jnp.arange(block), 0, rows - 1)
  own = jax.tree.map(lambda part: part[group], parts)
  # No scales are an empty tree, which `vmap` leaves as it is.
  y = jax.vmap(_one(back))(x[sources], *own)
  group = jnp.minimum(order.groups, groups - 1)
  within = jnp.arange(rows) - starts[group]
  places = (last[group] - counts[group]) * block + within
  done: Array = y.reshape(-1, y.shape[-1])[places]
  return done


def _block_size(rows: int, groups: int, platform: str) -> int:
  """Rows of a block."""
  block, most = _BLOCKS[platform]
  while block < most and block * groups < rows:
    block *= 2
  return block


def _one(back: bool) -> Callable[..., Array]:
  """The product of rows with one matrix, or with its transpose."""

  def multiply(x: Array, values: Array, scales: Array | None) -> Array:
    # MXFP4 is floating, too.
    if scales is None and jnp.issubdtype(values.dtype, jnp.floating):
      return x @ (values.T if back else values)
    if back:
      return quantize.multiply_back(x, values, scales)
    return quantize.multiply(x, values, scales)

  return multiply


def _ragged(x: Array, parts: _Parts, order: Order, back: bool) -> Array:
  values, scales = parts
  if scales is None and values.dtype == jnp.uint16:  # See `quantize.Matrix`.
    y: Array = _ragged_dot(
      x.astype(jnp.bfloat16),
      jax.lax.bitcast_convert_type(values, jnp.bfloat16),
      order.sizes,
      back,
      x.dtype,
    )
    return y
  if scales is None:
    return _ragged_dot(x, values, order.sizes, back, x.dtype)
  if scales.ndim == 3:  # int4 and MXFP4
    whole = jax.vmap(functools.partial(quantize.dequantise, dtype=x.dtype))(
      values, scales
    )
    return _ragged_dot(x, whole, order.sizes, back, x.dtype)
  own = scales[jnp.minimum(order.groups, len(scales) - 1)]
  if back:
    x = (x * own).astype(x.dtype)
  y = _ragged_dot(x, values.astype(x.dtype), order.sizes, back, x.dtype)
  return y if back else (y * own).astype(x.dtype)


def _ragged_dot(
  x: Shaped[Array, 'M C'],
  weight: Shaped[Array, 'E C O'],
  sizes: Int[Array, 'E'],
  back: bool,
  dtype: jnp.dtype,
) -> Shaped[Array, 'M O']:
  numbers = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2 if back else 1,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
  )
  y: Array = jax.lax.ragged_dot_general(
    x, weight, sizes, numbers, preferred_element_type=dtype
  )
  return y
