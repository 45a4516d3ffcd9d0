"""Calls of the kernels of `flash`, on one shard."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from vtokens.models.kernels import flash_kernels
from vtokens.models.kernels.flash_kernels import LOG2_E, Keys, Settings, Sizes
from vtokens.models.kernels.flash_masks import BLOCK, Masks

_WARPS = 4
# Blocks of keys and values that are loaded ahead, forward and backward, and the
# bytes for them. A program has 163 KiB on A100 and 227 KiB on H100. Blocks of
# queries take a quarter to a half as much as blocks of keys and values.
_STAGES, _STAGES_BACKWARD = 3, 2
_STAGED, _STAGED_BACKWARD = 2**17, 2**16


def forward(
  settings: Settings,
  q: Float[Array, 'B T N H'],
  parts: tuple[Keys, ...],
  masks: Masks,
  sinks: Float[Array, 'N'] | None,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']]:
  """Attends (algorithm 1).

  Args:
    settings: settings of the call.
    q: the queries.
    parts: keys and values of the caches and, last, of the new tokens.
    masks: which keys each query sees.
    sinks: see `flash.attend`.

  Returns:
    Attended values, and the base-2 logarithms of the softmax denominators.
    The denominators include the sinks, so `backward` needs no sinks.
  """
  b, t, n, _ = q.shape
  narrow = {}
  if sinks is not None:
    scores = sinks.astype(jnp.float32)[None, :, None] * LOG2_E
    narrow['sinks'] = jnp.broadcast_to(scores, (b, n, t))
  found: tuple[Array, Array] = _call(
    flash_kernels.forward_kernel,
    settings,
    {'q': q},
    narrow,
    parts,
    masks,
    (
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((b, n, t), jnp.float32),
    ),
    _stages(_STAGES, _STAGED, q),
  )
  return found


def backward(
  settings: Settings,
  q: Float[Array, 'B T N H'],
  parts: tuple[Keys, ...],
  masks: Masks,
  out: Float[Array, 'B T N H'],
  sums: Float[Array, 'B N T'],
  gradient: Float[Array, 'B T N H'],
  of_sums: Float[Array, 'B N T'],
) -> tuple[Float[Array, 'B T N H'], Keys]:
  """Gradients of the queries, and of the last part's keys and values.

  Algorithm 2, from the results of `forward` and the gradients of both.
  """
  # D of algorithm 2. The derivative of a logarithm of a denominator by a score
  # is the key's share of the softmax, so the gradient of `sums` adds to D.
  taken = jnp.einsum(
    'btnh,btnh->bnt', gradient, out, preferred_element_type=jnp.float32
  )
  taken -= of_sums * LOG2_E
  wide = {'q': q, 'gradient': gradient}
  narrow = {'sums': sums, 'taken': taken}
  of_q = _call(
    flash_kernels.queries_kernel,
    settings,
    wide,
    narrow,
    parts,
    masks,
    jax.ShapeDtypeStruct(q.shape, q.dtype),
    _stages(_STAGES_BACKWARD, _STAGED_BACKWARD, q),
  )
  return of_q, _call_of_keys(settings, wide, narrow, parts[-1], masks)


def _stages(most: int, size: int, q: Float[Array, 'B T N H']) -> int:
  """How many blocks of keys and values fit into `size` bytes, at least one."""
  block = 2 * BLOCK * pl.next_power_of_2(q.shape[-1]) * q.dtype.itemsize
  return max(1, min(most, size // block))


def _call(
  kernel: Callable[..., None],
  settings: Settings,
  wide: Mapping[str, Float[Array, 'B T N H']],
  narrow: Mapping[str, Float[Array, 'B N T']],
  parts: tuple[Keys, ...],
  masks: Masks,
  results: Any,
  stages: int,
) -> Any:
  """Runs a kernel for each block of queries of each head of each row.

  Args:
    kernel: the kernel.
    settings: its settings.
    wide: the queries and arrays of their shape.
    narrow: arrays with one number for each query and head.
    parts: keys and values.
    masks: which keys each query sees.
    results: shapes of the results, each like a wide or a narrow array.
    stages: blocks of keys that are loaded ahead.
  """
  b, length, n, h = wide['q'].shape
  groups = n // parts[0]['k'].shape[1]
  # Sizes of blocks are powers of two. Elements past the end are masked.
  width = pl.next_power_of_2(h)

  def like_queries(x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    if len(x.shape) == 4:
      return pl.BlockSpec(
        (None, BLOCK, None, width), lambda i, b, n: (b, i, n, 0)
      )
    return pl.BlockSpec((None, None, BLOCK), lambda i, b, n: (b, n, i))

  def of_keys(part: Keys) -> dict[str, pl.BlockSpec]:
    slots = part['k'].shape[-1]

    def of_head(*shape: int) -> pl.BlockSpec:
      return pl.BlockSpec(
        (None, None, *shape), lambda i, b, n: (b, n // groups, 0, 0)
      )

    return {'k': of_head(width, slots), 'v': of_head(slots, width)}

  return _pallas_call(
    kernel,
    settings,
    Sizes(length, h),
    (pl.cdiv(length, BLOCK), b, n),
    (wide, narrow, parts, masks),
    (
      jax.tree.map(like_queries, wide),
      jax.tree.map(like_queries, narrow),
      tuple(map(of_keys, parts)),
      _mask_specs(masks),
    ),
    results,
    jax.tree.map(like_queries, results),
    stages,
  )


def _call_of_keys(
  settings: Settings,
  wide: Mapping[str, Float[Array, 'B T N H']],
  narrow: Mapping[str, Float[Array, 'B N T']],
  new: Keys,
  masks: Masks,
) -> Keys:
  """Runs a kernel for each block of new keys of each of their heads."""
  b, length, n, h = wide['q'].shape
  heads = new['k'].shape[1]
  groups = n // heads
  width = pl.next_power_of_2(h)

  def of_group(x: Array) -> pl.BlockSpec:
    if x.ndim == 4:
      return pl.BlockSpec(
        (None, length, groups, width), lambda j, b, n: (b, 0, n, 0)
      )
    return pl.BlockSpec((None, groups, length), lambda j, b, n: (b, n, 0))

  specs = {
    'k': pl.BlockSpec((None, None, width, BLOCK), lambda j, b, n: (b, n, 0, j)),
    'v': pl.BlockSpec((None, None, BLOCK, width), lambda j, b, n: (b, n, j, 0)),
  }
  own = dataclasses.replace(masks, parts=masks.parts[-1:])
  of_new: Keys = _pallas_call(
    flash_kernels.keys_kernel,
    settings,
    Sizes(length, h),
    (pl.cdiv(length, BLOCK), b, heads),
    (wide, narrow, new, own),
    (
      jax.tree.map(of_group, wide),
      jax.tree.map(of_group, narrow),
      specs,
      _mask_specs(own),
    ),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(new)),
    specs,
    _stages(_STAGES_BACKWARD, _STAGED_BACKWARD, wide['q']),
  )
  return of_new


def _mask_specs(masks: Masks) -> Masks:
  def whole(x: Array) -> pl.BlockSpec:
    if x.ndim == 1:
      return pl.BlockSpec(x.shape, lambda i, b, n: (0,))
    return pl.BlockSpec((None, x.shape[1]), lambda i, b, n: (b, 0))

  specs: Masks = jax.tree.map(whole, masks)
  return specs


def _pallas_call(
  kernel: Callable[..., None],
  settings: Settings,
  sizes: Sizes,
  grid: tuple[int, int, int],
  operands: tuple[Any, ...],
  specs: tuple[Any, ...],
  results: Any,
  result_specs: Any,
  stages: int,
) -> Any:
  # Builds of JAX for some platforms lack this module.
  from jax.experimental.pallas import triton

  return pl.pallas_call(
    functools.partial(kernel, flash_kernels.Program(triton, settings, sizes)),
    grid=grid,
    in_specs=specs,
    out_specs=result_specs,
    out_shape=results,
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=stages),
    interpret=settings.interpret,
    name=f'attend_{kernel.__name__}',
  )(*operands)
