"""The layers' matrices in 16, 8 or 4 bits, rounded while loading.

bfloat16 has no scales: both factors of a product are rounded to it. int8 has a
scale for each output channel, int4 and MXFP4 one for each group of rows along
the contracted dimension. All are symmetric: a weight is value * scale. MXFP4 is
for the matrices of experts alone, as in gpt-oss' files, whose weights it keeps
as they are. Norms, biases, embedding and head stay in `base.dtype`.

qwix (0.1.8) would not save memory: its einsum keeps the dequantised weights for
the backward pass, and a scan stacks them to the whole model. Its arrays also
lack the logical axes that loading needs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int, Num, Shaped

from vtokens.host import errors

# Largest number of rows in a group: 4.25 bits a weight, with a bfloat16 scale
# for 64 rows, or one of 8 bits for 32 (OCP Microscaling Formats 1.0, MXFP4).
_GROUPS = {'int4': 64, 'mxfp4': 32}
_DTYPES = {
  'int8': jnp.int8,
  'int4': jnp.int4,
  'mxfp4': jnp.float4_e2m1fn,
}
_LARGEST = {'int8': 127, 'int4': 7}


class Matrix(nnx.Module):
  """A quantised matrix with one contracted axis and one output axis.

  Args:
    values: see below.
    scales: see below.
    axes: logical axes of the matrix, contracted axes first. Of merged
      axes, only the first may be sharded.
    shape: shape of the matrix before its axes are merged.
    inputs: number of contracted axes.
    outer: number of axes before these; see `layers.param`.

  Attributes:
    values: array of shape [C, O], after the outer axes, int8, int4 or
      float4_e2m1fn; uint16 for the bits of bfloat16, since XLA for CPUs would
      keep a float32 copy of all layers and convert it in each product.
    scales: for int8 an array of shape [O], float32; for int4 and MXFP4 of shape
      [C/g, O], bfloat16 and float8_e8m0fnu, with g rows in a group; None for
      bfloat16.
    inputs: number of axes that were merged into C.
    outputs: the axes that were merged into O.
  """

  def __init__(
    self,
    values: Num[Array, '*L C O'],
    scales: Float[Array, '*L G O'] | Float[Array, '*L O'] | None,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    inputs: int,
    outer: int = 0,
  ):
    before, axes, shape = axes[:outer], axes[outer:], shape[outer:]
    both = (*before, axes[0], axes[inputs])
    channels = values.dtype == jnp.int8
    self.values = nnx.Param(values, axes=both, inputs=1, outer=outer)
    self.scales = nnx.data(None)
    if scales is not None:
      self.scales = nnx.Param(
        scales,
        axes=(*before, both[-1]) if channels else both,
        inputs=1,
        outer=outer,
      )
    self.inputs, self.outputs = inputs, shape[inputs:]


def describe(method: str) -> str:
  """What a method quantises, and to what, for people.

  Args:
    method: bfloat16, int8, int4 or mxfp4.
  """
  if method == 'mxfp4':
    return 'experts in MXFP4'
  return f'matrices in {method}'


def matrix_inputs(variable: nnx.Variable[Any]) -> int | None:
  """Number of leading axes that a product contracts; see `layers.param`."""
  return variable.get_metadata().get('inputs')


def matrix_outer(variable: nnx.Variable[Any]) -> int:
  """Number of axes before those of one matrix; see `layers.param`."""
  outer: int = variable.get_metadata().get('outer', 0)
  return outer


def group_size(rows: int, method: str) -> int:
  """Rows of a group: the largest divisor of `rows` up to 64, for MXFP4 32.

  It does not depend on the mesh, so every mesh gives the same weights. A mesh
  that would split a group is refused, like one that does not divide a weight.
  """
  most = min(_GROUPS[method], rows)
  return next(g for g in range(most, 0, -1) if rows % g == 0)


def num_bytes(array: Any) -> float:
  """Bytes of an array or shape on a device that packs values of 4 bits."""
  bits: float = math.prod(array.shape) * jax.dtypes.itemsize_bits(array.dtype)
  return bits / 8


def quantise(
  weight: Float[Array, '...'], inputs: int, method: str
) -> tuple[Array, ...]:
  """Values and scales of a matrix, if it has scales; see `Matrix`.

  The largest weight of a channel or group becomes 127 or 7, and the error of a
  weight is at most half a scale. For MXFP4 see `_exponents`.

  Args:
    weight: the matrix, contracted axes first.
    inputs: number of contracted axes.
    method: bfloat16, int8, int4 or mxfp4.
  """
  flat = weight.astype(jnp.float32).reshape(
    math.prod(weight.shape[:inputs]), -1
  )
  if method == 'bfloat16':
    rounded = flat.astype(jnp.bfloat16)
    return (jax.lax.bitcast_convert_type(rounded, jnp.uint16),)
  groups = flat[None]
  if method in _GROUPS:
    # Groups stay within one head, so that devices that hold some of the heads
    # hold whole groups.
    size = group_size(weight.shape[inputs - 1], method)
    groups = _split(flat, len(flat) // size)
  largest = jnp.max(jnp.abs(groups), axis=1, keepdims=True)
  dtype = _DTYPES[method]
  if method == 'mxfp4':
    exponents = _exponents(largest)
    values = _round_e2m1(jnp.ldexp(groups, -exponents))
    values = values.reshape(flat.shape).astype(dtype)
    scales = jnp.ldexp(jnp.ones_like(largest), exponents)
    # E2M1 has no NaN and no infinity.
    scales = jnp.where(jnp.isfinite(largest), scales, jnp.nan)
    return values, scales[:, 0].astype(jnp.float8_e8m0fnu)
  # If all weights are 0, any scale will do.
  tiny = jnp.finfo(jnp.float32).tiny
  scales = jnp.maximum(largest / _LARGEST[method], tiny)
  if method == 'int4':
    # Rounded before the division, so that values fit the stored scale.
    scales = scales.astype(jnp.bfloat16)
  values = jnp.round(groups / scales.astype(jnp.float32))
  return (
    values.reshape(flat.shape).astype(dtype),
    scales[0, 0] if method == 'int8' else scales[:, 0],
  )


def _round_e2m1(x: Float[Array, '*B']) -> Float[Array, '*B']:
  """The nearest values of E2M1; XLA's conversion rounds twice on some devices.

  Args:
    x: numbers from -6 to 6.
  """
  size = jnp.abs(x)
  step = jnp.where(size < 2, 0.5, jnp.where(size < 4, 1.0, 2.0))
  return jnp.round(x / step) * step


def _exponents(largest: Float[Array, '...']) -> Int[Array, '...']:
  """Exponents of 2 of MXFP4's scales.

  The least with which no weight of a group is above 6, the largest value of
  E2M1. The largest value is then above 3. Weights that come from MXFP4 stay
  exact, unless their own scale was less than 2 ** -126.

  Args:
    largest: largest magnitude of each group, float32.
  """
  mantissa, exponent = jnp.frexp(largest)  # The mantissa is in [0.5, 1).
  # Below, scales would be denormal.
  return jnp.maximum(exponent - jnp.where(mantissa > 0.75, 2, 3), -126)


def dequantise(
  values: Num[Array, 'C O'],
  scales: Float[Array, 'G O'] | Float[Array, 'O'],
  dtype: jnp.dtype,
) -> Float[Array, 'C O']:
  """The matrix of a product, rounded once, to `dtype`."""
  if scales.ndim == 1:
    return (values.astype(jnp.float32) * scales).astype(dtype)
  # Values and scales are exact in bfloat16. XLA makes an array of all scales in
  # this dtype.
  groups = _split(values, len(scales)).astype(dtype)
  return (groups * scales[:, None].astype(dtype)).reshape(values.shape)


def product(x: Float[Array, '*B'], weight: Matrix) -> Float[Array, '*C']:
  """Contracts the last axes of x with a matrix, in x's dtype.

  Only x has a gradient.
  """
  batch = x.shape[: x.ndim - weight.inputs]
  scales = None if weight.scales is None else weight.scales[...]
  y = _product(x.reshape(*batch, -1), weight.values[...], scales)
  return y.reshape(*batch, *weight.outputs)


@jax.custom_vjp
def _product(
  x: Float[Array, '*B C'], values: Array, scales: Array | None
) -> Float[Array, '*B O']:
  return multiply(x, values, scales)


def multiply(
  x: Float[Array, '*B C'], values: Array, scales: Array | None
) -> Float[Array, '*B O']:
  """The product of rows with a matrix of one contracted axis.

  Args:
    x: rows.
    values: see `Matrix`.
    scales: see `Matrix`.
  """
  if scales is None:
    return jnp.matmul(
      x.astype(jnp.bfloat16),
      jax.lax.bitcast_convert_type(values, jnp.bfloat16),
      preferred_element_type=x.dtype,
    )
  values = _as_stored(values)
  if scales.ndim == 2:
    return x @ dequantise(values, scales, x.dtype)
  # int8 is exact in bfloat16. As without quantisation, devices sum over a
  # contracted axis in x's dtype.
  y = x @ values.astype(x.dtype)
  return (y * scales).astype(x.dtype)


def _forward(
  x: Array, values: Array, scales: Array | None
) -> tuple[Array, tuple[Array, Array | None]]:
  # It keeps no dequantised weights: over all layers they would be the whole
  # model. It does not call `_product`, which would hide the product from
  # `keep_products`.
  return multiply(x, values, scales), (values, scales)


def _backward(
  kept: tuple[Array, Array | None], grad: Array
) -> tuple[Array, None, None]:
  return multiply_back(grad, *kept), None, None


def multiply_back(
  grad: Float[Array, '*B O'], values: Array, scales: Array | None
) -> Float[Array, '*B C']:
  """The gradient of `multiply` for its rows.

  Args:
    grad: gradient of the products.
    values: see `Matrix`.
    scales: see `Matrix`.
  """
  if scales is None:
    return jnp.einsum(
      '...o,co->...c',
      grad.astype(jnp.bfloat16),
      jax.lax.bitcast_convert_type(values, jnp.bfloat16),
      preferred_element_type=grad.dtype,
    )
  values = _as_stored(values)
  if scales.ndim == 2:
    weight = dequantise(values, scales, grad.dtype)
  else:
    grad = (grad * scales).astype(grad.dtype)
    weight = values.astype(grad.dtype)
  return jnp.einsum('...o,co->...c', grad, weight)


_product.defvjp(_forward, _backward)


def quantise_layers(layers: nnx.Module, method: str) -> None:
  """Quantises the matrices of stacked layers, in place.

  Args:
    layers: the layers; their matrices have a leading axis of layers.
    method: bfloat16, int8, int4 or, for the matrices of experts, mxfp4.

  Raises:
    errors.UserError: the method is mxfp4 and there are no experts.
  """
  found = False
  for _, module in list(nnx.iter_modules(layers)):
    for name, weight in list(vars(module).items()):
      if not isinstance(weight, nnx.Param) or not is_quantised(weight, method):
        continue
      found = True
      inputs, outer = weight.get_metadata('inputs'), matrix_outer(weight)
      values, *scales = stacked(inputs, method, outer)(weight[...])
      axes, shape = weight.get_metadata('axes'), weight.shape[1:]
      setattr(
        module,
        name,
        Matrix(
          values, scales[0] if scales else None, axes, shape, inputs, outer
        ),
      )
  if method == 'mxfp4' and not found:
    raise errors.UserError(
      'config.base.quantize: mxfp4 is for experts, and the base has none; '
      'choose int8 or int4'
    )


def is_quantised(variable: nnx.Variable[Any], method: str) -> bool:
  """Whether a method quantises a weight; see `layers.param`."""
  exact = variable.get_metadata().get('exact', False)
  if exact or not matrix_inputs(variable):
    return False
  return method != 'mxfp4' or 'expert' in variable.get_metadata('axes')


def stacked(
  inputs: int, method: str, outer: int = 0
) -> Callable[[Array], tuple[Array, ...]]:
  """`quantise` for matrices with a leading axis of layers and outer axes."""
  run: Callable[[Array], tuple[Array, ...]] = functools.partial(
    quantise, inputs=inputs, method=method
  )
  for _ in range(1 + outer):
    run = jax.vmap(run)
  return run


def _as_stored(values: Num[Array, 'C O']) -> Num[Array, 'C O']:
  """Keeps XLA from copying the stack into another layout.

  In a loop over the layers XLA for TPUs would copy the whole stacks of q, k and
  v, a quarter of all weights, to get outputs with heads before tokens. With
  this constraint it transposes one layer at a time instead.
  """
  stored: Array = with_layout_constraint(values, Layout((0, 1)))
  return stored


def _split(x: Shaped[Array, 'C O'], groups: int) -> Shaped[Array, 'G R O']:
  return x.reshape(groups, -1, x.shape[1])
