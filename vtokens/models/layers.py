"""Norm, gated MLP and other parts of a decoder block."""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models import quantize
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.layer_inputs import LayerInputs


def param(
  rngs: nnx.Rngs,
  shape: Sequence[int],
  axes: Sequence[str],
  dtype: jnp.dtype,
  init: jax.nn.initializers.Initializer | None = None,
  *,
  inputs: int | None = None,
  outer: int = 0,
  active: float = 1.0,
  constant: bool = False,
  exact: bool = False,
  taps: bool = False,
) -> nnx.Param[Array]:
  """A weight and its metadata.

  The metadata say how it is sharded, stored in files, quantised and counted.

  Args:
    rngs: random streams; only `params` is used.
    shape: dimensions.
    axes: one logical name per dimension; `partitioning.LOGICAL_AXIS_RULES` maps
      each to the mesh axis that shards it.
    dtype: dtype of the stored weight.
    init: initialiser; normal with standard deviation 0.02 if None.
    inputs: number of leading axes that a product with the matrix contracts; 0
      for a table of rows, None for a weight that files store as one axis.
    outer: number of axes before these: 1 for the matrices of experts.
    active: share of the matrix that one token uses, e.g. its experts' share.
    constant: whether it is a constant in the files, no parameter.
    exact: whether the matrix is not quantised.
    taps: whether it has the kernel of each channel of a convolution, in the
      shape [channels, taps]; files have [channels, 1, taps].
  """
  init = init or jax.nn.initializers.normal(0.02)
  return nnx.Param(
    init(rngs.params(), tuple(shape), dtype),
    axes=tuple(axes),
    inputs=inputs,
    outer=outer,
    active=active,
    **({'constant': True} if constant else {}),
    **({'taps': True} if taps else {}),
    exact=exact,
  )


def product(
  spec: str, x: Float[Array, '*B'], weight: nnx.Param[Array] | quantize.Matrix
) -> Float[Array, '*C']:
  """`jnp.einsum(spec, x, weight)` for a matrix of a layer, quantised or not.

  Args:
    spec: contracts the last axes of x with the first axes of the matrix.
    x: activations.
    weight: the matrix.
  """
  if isinstance(weight, quantize.Matrix):
    return quantize.product(x, weight)
  return jnp.einsum(spec, x, weight[...])


def exact_products(
  dtype: jnp.dtype,
) -> contextlib.AbstractContextManager[object]:
  """A context in which products of float32 have the precision of float32.

  Otherwise GPUs and TPUs use fewer bits. It applies to what is traced in it: a
  backward pass must be traced in it, too.

  Args:
    dtype: of the base; nothing changes unless it is float32.
  """
  if dtype == jnp.float32:
    precise: contextlib.AbstractContextManager[object] = (
      jax.default_matmul_precision('highest')
    )
    return precise
  return contextlib.nullcontext()


class RMSNorm(nnx.Module):
  """Root mean square norm (arXiv 1910.07467), computed in float32.

  Args:
    shape: the last dimensions of the input, which are normed together.
    axes: logical names of these dimensions.
    config: gives `norm_eps`, `norm_offset` and `norm_scale`.
    dtype: dtype of the stored scale.
    rngs: not used; `param` takes it.
  """

  def __init__(
    self,
    shape: Sequence[int],
    axes: Sequence[str],
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    # With `qk_norm='head'` there is one dimension: each head is normed by
    # itself.
    self.axes = tuple(range(-len(shape), 0))
    self.has_scale = config.norm_scale
    if self.has_scale:
      self.scale = param(rngs, shape, axes, dtype, jax.nn.initializers.ones)
    self.eps = config.norm_eps
    self.offset = config.norm_offset

  def __call__(self, x: Float[Array, '*B']) -> Float[Array, '*B']:
    y = x.astype(jnp.float32)
    mean = jnp.mean(y * y, axis=self.axes, keepdims=True)
    y = y * jax.lax.rsqrt(mean + self.eps)
    if self.has_scale:
      y = y * (self.scale[...].astype(jnp.float32) + self.offset)
    return y.astype(x.dtype)


def unscaled_rms(x: Float[Array, '*B'], eps: float) -> Float[Array, '*B']:
  """The norm of `RMSNorm` over the last dimension, without a scale."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return y.astype(x.dtype)


class LayerNorm(nnx.Module):
  """Norm that subtracts the mean (arXiv 1607.06450), computed in float32.

  The last dimension is normed; a scale may have more dimensions.

  Args:
    shape: see `RMSNorm`; also of the bias.
    axes: see `RMSNorm`.
    config: see `RMSNorm`.
    dtype: dtype of the stored scale and bias.
    rngs: not used; `param` takes it.
    bias: whether there is a bias.
  """

  def __init__(
    self,
    shape: Sequence[int],
    axes: Sequence[str],
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    *,
    bias: bool = False,
  ):
    init = jax.nn.initializers
    inputs = 0 if len(shape) > 1 else None
    self.has_scale = config.norm_scale
    if self.has_scale:
      self.scale = param(rngs, shape, axes, dtype, init.ones, inputs=inputs)
    if bias:
      self.bias = param(rngs, shape, axes, dtype, init.zeros, inputs=inputs)
    self.has_bias = bias
    self.eps = config.norm_eps
    self.offset = config.norm_offset

  def __call__(self, x: Float[Array, '*B']) -> Float[Array, '*B']:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(y * y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + self.eps)
    if self.has_scale:
      y = y * (self.scale[...].astype(jnp.float32) + self.offset)
    if self.has_bias:
      y = y + self.bias[...].astype(jnp.float32)
    return y.astype(x.dtype)


def residual_norm(
  config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
) -> RMSNorm | LayerNorm:
  """A norm of the residual stream."""
  shape, axes = (config.embed_dim,), ('norm',)
  if config.norm == 'layer':
    return LayerNorm(shape, axes, config, dtype, rngs, bias=config.norm_bias)
  return RMSNorm(shape, axes, config, dtype, rngs)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'silu': jax.nn.silu,
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),
}


class GatedMLP(nnx.Module):
  """`down(act(gate(x)) * up(x))` (arXiv 2002.05202).

  Args:
    config: gives `embed_dim` and `activation`.
    dtype: dtype of the stored weights.
    rngs: random streams.
    width: width between the matrices; None for `mlp_dim`.
    sparsity: share of the gate's values that become zero, if they are normally
      distributed: the quantile of this share is subtracted, and what is then
      negative becomes zero.
  """

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    width: int | None = None,
    sparsity: float = 0.0,
  ):
    self.cutoff = (
      statistics.NormalDist().inv_cdf(sparsity) if sparsity else None
    )
    dim, width = config.embed_dim, width or config.mlp_dim
    self.gate = param(rngs, (dim, width), ('embed', 'mlp'), dtype, inputs=1)
    self.up = param(rngs, (dim, width), ('embed', 'mlp'), dtype, inputs=1)
    self.down = param(rngs, (width, dim), ('mlp', 'embed'), dtype, inputs=1)
    self.activation = config.activation

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    del tokens
    gate = product('btd,df->btf', x, self.gate)
    if self.cutoff is not None:
      deviations = jnp.std(gate, axis=-1, keepdims=True)
      least = deviations * jnp.asarray(self.cutoff, gate.dtype)
      gate = gate - (jnp.mean(gate, axis=-1, keepdims=True) + least)
      gate = jax.nn.relu(gate)
    gate = ACTIVATIONS[self.activation](gate)
    return product(
      'btf,fd->btd', gate * product('btd,df->btf', x, self.up), self.down
    )


@dataclasses.dataclass(frozen=True)
class Gated:
  """Makes a `GatedMLP` of another width than the config's.

  Attributes:
    width: see `GatedMLP`.
    sparsity: see `GatedMLP`.
  """

  width: int
  sparsity: float = 0.0

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return GatedMLP(config, dtype, rngs, self.width, self.sparsity)


def scaled(x: Float[Array, '*B'], scale: float) -> Float[Array, '*B']:
  """X times a number, which is rounded to x's dtype as in transformers."""
  return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)


def softcap(x: Float[Array, '*B'], cap: float | None) -> Float[Array, '*B']:
  """`cap * tanh(x / cap)`: x, smoothly bounded to +-cap; x if cap is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def pad(x: Array, axis: int, fill: int = 0, *, size: int) -> Array:
  """Appends `size` elements of padding along an axis."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size)
  return jnp.pad(x, widths, constant_values=fill)
