"""Norm, rotary embedding and the gated MLP of a decoder block."""

from collections.abc import Sequence

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def param(
  rngs: nnx.Rngs,
  shape: Sequence[int],
  axes: Sequence[str],
  dtype: jnp.dtype,
  init: jax.nn.initializers.Initializer | None = None,
) -> nnx.Param:
  """A weight whose dimensions carry logical axis names.

  Args:
    rngs: random streams; only `params` is used.
    shape: dimensions.
    axes: one logical name per dimension; `partitioning.LOGICAL_AXIS_RULES`
      says over which mesh axis each is sharded.
    dtype: of the stored weight.
    init: initialiser; normal with standard deviation 0.02 if None.
  """
  init = init or jax.nn.initializers.normal(0.02)
  return nnx.Param(init(rngs.params(), tuple(shape), dtype), axes=tuple(axes))


class RMSNorm(nnx.Module):
  """Root mean square norm, computed in f32 (arXiv 1910.07467)."""

  def __init__(self, dim: int, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.scale = param(
      rngs, (dim,), ('embed',), dtype, jax.nn.initializers.ones
    )
    self.eps = eps

  def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * self.scale[...]


def rope_angles(
  positions: Int[Array, 'B T'], head_dim: int, theta: float
) -> tuple[Float[Array, 'B T 1 H2'], Float[Array, 'B T 1 H2']]:
  """Cosines and sines of the rotary embedding, f32 (arXiv 2104.09864).

  Frequency i of H/2 is `theta ** (-2 i / H)` radians per position. It is
  rounded to f32 before it meets the position, as in transformers: the error
  grows with the position, and must be the one that the model was trained on.
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequencies = 1 / np.float32(theta) ** exponents
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, 'B T N H'],
  angles: tuple[Float[Array, 'B T 1 H2'], Float[Array, 'B T 1 H2']],
) -> Float[Array, 'B T N H']:
  """Turns pair (i, i + H/2) of each head by its angle, in f32."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(x.dtype)


class GatedMLP(nnx.Module):
  """`down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202)."""

  def __init__(self, dim: int, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.gate = param(rngs, (dim, width), ('embed', 'mlp'), dtype)
    self.up = param(rngs, (dim, width), ('embed', 'mlp'), dtype)
    self.down = param(rngs, (width, dim), ('mlp', 'embed'), dtype)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    return (jax.nn.silu(x @ self.gate[...]) * (x @ self.up[...])) @ self.down[
      ...
    ]
