"""Greedy answers: prefix once, suffix once, then one token at a time."""

import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtokens import steps, virtual_tokens
from vtokens.models.attention import KVCache


@functools.partial(jax.jit, static_argnames='graph')
def encode_prefix(
  base: nnx.State,
  prefix: Int[Array, 'B P'],
  positions: Int[Array, 'B P'],
  *,
  graph: nnx.GraphDef,
) -> KVCache:
  """Keys and values of the passages, for any number of suffixes after them."""
  return steps.encode_prefix(nnx.merge(graph, base), prefix, positions)


@functools.partial(jax.jit, static_argnames=('graph', 'max_new_tokens'))
def greedy(
  base: nnx.State,
  table: Float[Array, 'P D'],
  cache: KVCache,
  suffix: Int[Array, 'B S'],
  positions: Int[Array, 'B S'],
  eos_id: Int[Array, ''],
  is_end: Bool[Array, 'V'],
  is_newline: Bool[Array, 'V'],
  is_blank: Bool[Array, 'V'],
  *,
  graph: nnx.GraphDef,
  max_new_tokens: int,
) -> Int[Array, 'B max_new_tokens']:
  """The most likely token after the suffix, and so on.

  Ids of virtual tokens cannot come out: the head has no logits for them.

  Args:
    base: weights of the decoder.
    table: the virtual tokens.
    cache: of the prefix; see `encode_prefix`.
    suffix: virtual tokens and prompt, right-padded.
    positions: of the suffix's tokens, -1 for padding; they go on where the
      prefix ends.
    eos_id: fills up rows that have ended.
    is_end: tokens that end a row: eos, the end of a turn.
    is_newline: tokens whose text has a line break; they end a row once it
      has a token that is not blank. All false: line breaks do not end it.
    is_blank: tokens whose text is only white space.
    graph: structure of the decoder.
    max_new_tokens: longest answer.

  Returns:
    Generated ids; after a row's end, eos. The token that ends a row is kept.
  """
  decoder = nnx.merge(graph, base)
  hidden, kv = decoder(
    virtual_tokens.embed(decoder, table, suffix), positions, [cache]
  )
  # The passages' cache is only read; what grows is this small one.
  tail = kv.with_room(max_new_tokens)
  first_slot = suffix.shape[1]
  suffix_len = (positions >= 0).sum(axis=1)
  last = jnp.maximum(suffix_len - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  length = positions.max(axis=1) + 1
  rows = suffix.shape[0]

  def pick(hidden, done):
    token = jnp.argmax(decoder.logits(hidden), axis=-1).astype(jnp.int32)
    return jnp.where(done, eos_id, token)

  def unfinished(carry):
    step, _, _, done, *_ = carry
    return (step < max_new_tokens) & ~done.all()

  def advance(carry):
    step, hidden, tail, done, begun, out = carry
    token = pick(hidden, done)
    out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, axis=1)
    begun = begun | ~is_blank[token]
    done = done | is_end[token] | (begun & is_newline[token])
    new, kv = decoder(
      decoder.embed(token[:, None]), (length + step)[:, None], [cache, tail]
    )
    tail = tail.write(kv, first_slot + step)
    return step + 1, new[:, 0], tail, done, begun, out

  out = jnp.full((rows, max_new_tokens), eos_id, jnp.int32)
  carry = (
    jnp.zeros((), jnp.int32),
    hidden,
    tail,
    suffix_len == 0,
    jnp.zeros((rows,), bool),
    out,
  )
  return jax.lax.while_loop(unfinished, advance, carry)[-1]
