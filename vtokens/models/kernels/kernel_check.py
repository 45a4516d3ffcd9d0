"""Checks that the kernels compute correct results on this machine's GPUs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kernels import flash
from vtokens.models.kv_cache import KVCache
from vtokens.models.mixers import attention

# Numbers of rows and of key heads; a kernel has to pick the right one of each.
_ROWS, _HEADS = 2, 2
# Lengths of the passages of two examples in a row, and slots of the row. The
# second example fills whole blocks, in which the kernels mask nothing.
_PASSAGES, _SLOTS = (70, 150), 230
_FOLLOWING, _TOKENS = (40, 140), 190
# Tokens that a query sees: the last queries do not see the first passages.
WINDOW = 250

# A pytree of arrays.
_Arrays = TypeVar('_Arrays')


def check(config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh) -> None:
  """Compares kernels with matrix products, if a base would use the kernels.

  The result may depend on versions of compiler and driver that were never
  tested. The check compiles both programs, which takes seconds, once a process.

  Args:
    config: the base's architecture.
    dtype: dtype of its activations.
    mesh: the devices.

  Raises:
    errors.UserError: the results differ.
  """
  # Latent attention does not use them.
  plain = config.cache_widths == (config.head_dim, config.head_dim)
  if (
    config.kernels
    and plain
    and flash.is_for(mesh, mesh.size, _TOKENS, config.head_dim, dtype)
  ):
    compare(
      config.num_heads // config.num_kv_heads,
      config.head_dim,
      config.attention_softcap,
      any(kind.window for kind in config.layer_kinds),
      config.sinks,
      dtype,
      mesh.local_devices[0],
      interpret=False,
    )


@functools.cache
def compare(
  groups: int,
  head_dim: int,
  softcap: float | None,
  windowed: bool,
  sinks: bool,
  dtype: jnp.dtype,
  device: jax.Device,
  *,
  interpret: bool,
) -> None:
  """Compares the kernels with matrix products on random inputs.

  Args:
    groups: query heads for each key head.
    head_dim: width of a head.
    softcap: bound of the attention scores; None for none.
    windowed: whether a query sees only the last `WINDOW` tokens.
    sinks: whether each head has a sink; see `DecoderConfig.sinks`.
    dtype: dtype of the activations.
    device: the device that runs both.
    interpret: whether to run the kernels without a GPU.

  Raises:
    errors.UserError: the error of the kernels is larger than rounding explains.
  """
  q, new, cache = make_inputs(groups, head_dim, dtype)
  real = (new.positions >= 0)[..., None, None]
  gradient = jnp.where(real, jnp.roll(q, 1, axis=-1), 0)
  mesh = partitioning.make_mesh((1, 1, 1), [device])
  # As large as the largest of a query's scores.
  sink = jnp.linspace(0, 4, q.shape[2], dtype=dtype) if sinks else None

  def values(
    attend: Callable[..., Array], q: Array, new: KVCache, cache: KVCache
  ) -> tuple[Array, ...]:
    def attended(q: Array, k: Array, v: Array) -> Array:
      out = attend(
        q,
        dataclasses.replace(new, k=k, v=v),
        [cache],
        mesh=mesh,
        scale=head_dim**-0.5,
        softcap=softcap,
        window=WINDOW if windowed else None,
        sinks=sink,
      )
      return jnp.where(real, out, 0)

    out, pull = jax.vjp(attended, q, new.k, new.v)
    return out, *pull(gradient.astype(q.dtype))

  def exact(tree: _Arrays) -> _Arrays:
    raised: _Arrays = jax.tree.map(
      lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, tree
    )
    return raised

  run = jax.jit(values, static_argnums=0)
  kernel = functools.partial(flash.attend, interpret=interpret)
  found = run(kernel, q, new, cache)
  usual = run(attention.attend, q, new, cache)
  with jax.default_matmul_precision('highest'):
    right = run(attention.attend, *exact((q, new, cache)))
  names = ('values', "queries' gradient", "keys' gradient", "values' gradient")
  for name, x, y, z in zip(names, found, usual, right, strict=True):
    error, expected = (
      float(jnp.linalg.norm(a.astype(jnp.float32) - z)) for a in (x, y)
    )
    # Written with `not`, so that NaN fails, too.
    if not error <= 2 * expected:
      size = float(jnp.linalg.norm(z))
      raise errors.UserError(
        f'base.attention=auto: on {device.device_kind} with '
        f'jax {jax.__version__} the attention kernels are wrong: {name} with '
        f'a relative error of {error / size:.2g}, where matrix products have '
        f'{expected / size:.2g}; set base.attention=plain, and report this'
      )


def make_inputs(
  groups: int, head_dim: int, dtype: jnp.dtype
) -> tuple[Float[Array, 'B T N H'], KVCache, KVCache]:
  """Random queries, new keys and values, and a cache, with packed rows.

  Args:
    groups: query heads for each key head.
    head_dim: width of a head.
    dtype: dtype of all arrays.
  """
  rng = np.random.default_rng(0)

  def normal(*shape: int) -> Array:
    return jnp.asarray(rng.standard_normal(shape), dtype)

  def keys(
    lengths: tuple[int, ...], starts: tuple[int, ...], size: int
  ) -> KVCache:
    positions = np.full((_ROWS, size), -1, np.int32)
    segments = np.full((_ROWS, size), -1, np.int32)
    at = 0
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
      slots = slice(at, at + length)
      positions[:, slots] = start + np.arange(length)
      segments[:, slots] = number
      at += length
    return KVCache(
      normal(_ROWS, _HEADS, head_dim, size),
      normal(_ROWS, _HEADS, size, head_dim),
      jnp.asarray(positions),
      jnp.asarray(segments),
    )

  q = 2 * normal(_ROWS, _TOKENS, _HEADS * groups, head_dim)
  new = keys(_FOLLOWING, _PASSAGES, _TOKENS)
  return q, new, keys(_PASSAGES, (0, 0), _SLOTS)
