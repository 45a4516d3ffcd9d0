"""Whether the kernels for GPUs compute what they should on the ones at hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vtokens import errors, partitioning
from vtokens.models import attention, flash
from vtokens.models.config import DecoderConfig
from vtokens.models.kv_cache import KVCache

# Of two examples in a row, the second longer: passages and what follows them.
_PASSAGES, _SLOTS = (70, 110), 200
_FOLLOWING, _TOKENS = (40, 55), 100
_WINDOW = 50


def check(config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh) -> None:
  """Compares kernels with matrix products, where a base would use them.

  They depend on a compiler and a driver that this was not tried with. It takes
  the seconds in which both are compiled, once in a process.

  Args:
    config: of the base.
    dtype: of its activations.
    mesh: the devices.

  Raises:
    errors.UserError: they differ.
  """
  if config.kernels and flash.is_for(mesh, _TOKENS, dtype):
    _compare(
      config.num_heads // config.num_kv_heads,
      config.head_dim,
      config.attention_softcap,
      any(kind.window for kind in config.layer_kinds),
      dtype,
      interpret=False,
    )


@functools.cache
def _compare(
  groups: int,
  head_dim: int,
  softcap: float | None,
  windowed: bool,
  dtype: jnp.dtype,
  *,
  interpret: bool,
) -> None:
  rng = np.random.default_rng(0)

  def normal(*shape: int) -> Float[Array, '*S']:
    return jnp.asarray(rng.standard_normal(shape), dtype)

  def keys(lengths: tuple[int, ...], starts: tuple[int, ...], size: int):
    positions = np.full((1, size), -1, np.int32)
    segments = np.full((1, size), -1, np.int32)
    at = 0
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
      slots = slice(at, at + length)
      positions[0, slots] = start + np.arange(length)
      segments[0, slots] = number
      at += length
    return KVCache(
      normal(1, 1, head_dim, size),
      normal(1, 1, size, head_dim),
      jnp.asarray(positions),
      jnp.asarray(segments),
    )

  q = 2 * normal(1, _TOKENS, groups, head_dim)
  cache = keys(_PASSAGES, (0, 0), _SLOTS)
  new = keys(_FOLLOWING, _PASSAGES, _TOKENS)
  real = (new.positions >= 0)[..., None, None]
  gradient = jnp.where(real, normal(*q.shape), 0)
  mesh = partitioning.make_mesh((1, 1, 1), jax.local_devices()[:1])

  def values(attend, q, new, cache):
    def attended(q, k, v):
      out = attend(
        q,
        new.replace(k=k, v=v),
        [cache],
        mesh=mesh,
        scale=head_dim**-0.5,
        softcap=softcap,
        window=_WINDOW if windowed else None,
      )
      return jnp.where(real, out, 0)

    out, pull = jax.vjp(attended, q, new.k, new.v)
    return out, *pull(gradient.astype(q.dtype))

  def exact(tree):
    return jax.tree.map(
      lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, tree
    )

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
    # Not a number is no less, either.
    if not error <= 2 * expected:
      size = float(jnp.linalg.norm(z))
      raise errors.UserError(
        f'base.attention=auto: on {jax.local_devices()[0].device_kind} with '
        f'jax {jax.__version__} the attention kernels are wrong: {name} with '
        f'a relative error of {error / size:.2g}, where matrix products have '
        f'{expected / size:.2g}; set base.attention=plain, and report this'
      )
