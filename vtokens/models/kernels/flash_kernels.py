"""The kernels of `flash`; `flash_calls` runs them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from vtokens.models import layers
from vtokens.models.kernels import flash_masks
from vtokens.models.kernels.flash_masks import BLOCK, Masks

_LOWEST = float(jnp.finfo(jnp.float32).min)
LOG2_E = math.log2(math.e)

# The `k` and `v` of a `KVCache`.
Keys = Mapping[str, Any]
# Arguments of a kernel, by name.
_Refs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Compile-time settings of a call; see `flash.attend`."""

  scale: float
  softcap: float | None
  interpret: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Queries of a row, and the width of a head; blocks may exceed both."""

  length: int
  head_dim: int


@dataclasses.dataclass(frozen=True)
class Program:
  """Parts that the kernels share."""

  triton: Any
  settings: Settings
  sizes: Sizes

  def load(self, ref: Any, *masks: Array | None) -> Array:
    """Reads a block; elements are 0 where the mask of an axis is false."""
    mask = _outer(*masks)
    other = None if mask is None else 0.0
    block: Array = self.triton.load(ref, mask=mask, other=other)
    return block

  def store(self, ref: Any, value: Array, *masks: Array | None) -> None:
    """Writes a block where the masks of its axes are true."""
    mask = _outer(*masks)
    self.triton.store(ref, value.astype(ref.dtype), mask=mask)

  def tokens(self, block: Array) -> Array | None:
    """Mask of a block's tokens that exist; None for all."""
    return _beyond(block, self.sizes.length)

  def width(self) -> Array | None:
    """Mask of the elements of a block's width that exist; None for all."""
    width = pl.next_power_of_2(self.sizes.head_dim)
    if width == self.sizes.head_dim:
      return None
    return jnp.arange(width) < self.sizes.head_dim

  def scores(self, q: Array, k: Array) -> Array:
    """Unmasked scores of queries and keys."""
    scores = self.triton.dot(q, k) * self.settings.scale
    return layers.softcap(scores, self.settings.softcap)

  def through_scores(self, of_scores: Array, scores: Array) -> Array:
    """The gradient of q times k from the gradient of `scores`.

    The scale is not applied here: the caller multiplies the sum by it.
    """
    cap = self.settings.softcap
    if cap is not None:
      of_scores *= 1 - jnp.square(scores / cap)
    return of_scores

  def over_keys(
    self,
    q: Array,
    parts: tuple[Keys, ...],
    masks: Masks,
    add: Callable[..., Any],
    carry: Any,
  ) -> Any:
    """Loops over the blocks of keys that a block of queries needs.

    Args:
      q: the queries.
      parts: refs of keys and values.
      masks: refs of the masks.
      add: takes the carry, the scores, their mask or None, k and v; returns the
        new carry.
      carry: the initial carry.

    Returns:
      The last carry.
    """
    block = pl.program_id(0)

    def step(
      keys: Keys,
      part: flash_masks.Part,
      masked: bool,
      j: Int[Array, ''],
      carry: Any,
    ) -> Any:
      at = pl.ds(j * BLOCK, BLOCK)
      there = _beyond(j, keys['v'].shape[0]) if masked else None
      k = self.load(keys['k'].at[:, at], self.width(), there)
      v = self.load(keys['v'].at[at, :], there, self.width())
      seen = flash_masks.seen_by(masks, part, block, j) if masked else None
      return add(carry, self.scores(q, k), seen, k, v)

    for keys, part in zip(parts, masks.parts, strict=True):
      masked, whole = (
        functools.partial(step, keys, part, x) for x in (True, False)
      )
      first, begin, end, last = (
        x[block] for x in (part.first, part.begin, part.end, part.last)
      )
      carry = jax.lax.fori_loop(first, begin, masked, carry)
      carry = jax.lax.fori_loop(begin, end, whole, carry)
      carry = jax.lax.fori_loop(end, last, masked, carry)
    return carry


def _outer(*masks: Array | None) -> Array | None:
  """Joins the masks of a block's axes; None where nothing is masked."""
  if len(masks) == 1:
    return masks[0]
  rows, columns = masks
  if rows is None:
    return None if columns is None else columns[None, :]
  return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def _beyond(block: Array, length: int) -> Array | None:
  """Mask of the elements of a block that are below `length`; None for all."""
  if length % BLOCK == 0:
    return None
  return block * BLOCK + jnp.arange(BLOCK) < length


def forward_kernel(
  program: Program,
  wide: _Refs,
  narrow: _Refs,
  parts: tuple[Keys, ...],
  masks: Masks,
  out_ref: Any,
  sums_ref: Any,
) -> None:
  """Attends a block of queries of one head (algorithm 1)."""
  there, inside = program.tokens(pl.program_id(0)), program.width()
  q = program.load(wide['q'], there, inside)
  total = jnp.zeros(BLOCK, jnp.float32)
  largest = jnp.full(BLOCK, _LOWEST, jnp.float32)
  if 'sinks' in narrow:
    # A sink is the first score, and its value is zero.
    total = jnp.ones(BLOCK, jnp.float32)
    largest = program.load(narrow['sinks'], there)

  def add(
    carry: tuple[Array, Array, Array],
    scores: Array,
    seen: Array | None,
    k: Array,
    v: Array,
  ) -> tuple[Array, Array, Array]:
    del k
    total, largest, attended = carry
    # The hardware computes powers of two.
    scores = scores * LOG2_E
    if seen is not None:
      scores = jnp.where(seen, scores, _LOWEST)
    # A query that has seen no key yet sums garbage. Its first real score is
    # so much larger that the garbage is multiplied by 0.
    new = jnp.maximum(largest, scores.max(axis=1))
    weights = jnp.exp2(scores - new[:, None])
    shrink = jnp.exp2(largest - new)
    value = program.triton.dot(weights.astype(v.dtype), v)
    return (
      total * shrink + weights.sum(axis=1),
      new,
      attended * shrink[:, None] + value,
    )

  total, largest, attended = program.over_keys(
    q,
    parts,
    masks,
    add,
    (total, largest, jnp.zeros(q.shape, jnp.float32)),
  )
  # Blocks of nothing but padding have a sum of 0.
  total = jnp.where(total > 0, total, 1.0)
  program.store(out_ref, attended / total[:, None], there, inside)
  # Base-2 logarithms, as `_shares` uses them.
  program.store(sums_ref, largest + jnp.log2(total), there)


def _shares(scores: Array, sums: Array, seen: Array | None) -> Array:
  """Softmax weights, from the sums that `forward_kernel` wrote."""
  shares = jnp.exp2(scores * LOG2_E - sums[:, None])
  return shares if seen is None else jnp.where(seen, shares, 0.0)


def queries_kernel(
  program: Program,
  wide: _Refs,
  narrow: _Refs,
  parts: tuple[Keys, ...],
  masks: Masks,
  of_q_ref: Any,
) -> None:
  """The gradient of a block of queries of one head (algorithm 2)."""
  there, inside = program.tokens(pl.program_id(0)), program.width()
  q, gradient = (
    program.load(wide[x], there, inside) for x in ('q', 'gradient')
  )
  sums, taken = (program.load(narrow[x], there) for x in ('sums', 'taken'))

  def add(
    of_q: Array, scores: Array, seen: Array | None, k: Array, v: Array
  ) -> Array:
    of_shares = program.triton.dot(gradient, v, trans_b=True)
    of_scores = _shares(scores, sums, seen) * (of_shares - taken[:, None])
    of_scores = program.through_scores(of_scores, scores).astype(k.dtype)
    more: Array = program.triton.dot(of_scores, k, trans_b=True)
    return of_q + more

  zeros = jnp.zeros(q.shape, jnp.float32)
  of_q = program.over_keys(q, parts, masks, add, zeros)
  program.store(of_q_ref, of_q * program.settings.scale, there, inside)


def keys_kernel(
  program: Program,
  wide: _Refs,
  narrow: _Refs,
  new: Keys,
  masks: Masks,
  of_new: Keys,
) -> None:
  """Gradients of a block of new keys and values of one head (algorithm 2)."""
  block = pl.program_id(0)
  [part] = masks.parts
  there, inside = program.tokens(block), program.width()
  k = program.load(new['k'], inside, there)
  v = program.load(new['v'], there, inside)

  def add(
    head: Int[Array, ''], i: Int[Array, ''], carry: tuple[Array, Array]
  ) -> tuple[Array, Array]:
    of_k, of_v = carry
    rows = pl.ds(i * BLOCK, BLOCK)
    real = program.tokens(i)
    q, gradient = (
      program.load(wide[x].at[rows, head, :], real, inside)
      for x in ('q', 'gradient')
    )
    sums, taken = (
      program.load(narrow[x].at[head, rows], real) for x in ('sums', 'taken')
    )
    scores = program.scores(q, k)
    shares = _shares(scores, sums, flash_masks.seen_by(masks, part, i, block))
    of_v += program.triton.dot(
      shares.astype(gradient.dtype), gradient, trans_a=True
    )
    of_shares = program.triton.dot(gradient, v, trans_b=True)
    of_scores = program.through_scores(
      shares * (of_shares - taken[:, None]), scores
    )
    of_k += program.triton.dot(q, of_scores.astype(q.dtype), trans_a=True)
    return of_k, of_v

  carry = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  from_row, to_row = part.from_row[block], part.to_row[block]

  def add_head(
    head: Int[Array, ''], carry: tuple[Array, Array]
  ) -> tuple[Array, Array]:
    of_k, of_v = jax.lax.fori_loop(
      from_row, to_row, functools.partial(add, head), carry
    )
    return of_k, of_v

  of_k, of_v = jax.lax.fori_loop(0, wide['q'].shape[1], add_head, carry)
  program.store(of_new['k'], of_k * program.settings.scale, inside, there)
  program.store(of_new['v'], of_v, there, inside)
