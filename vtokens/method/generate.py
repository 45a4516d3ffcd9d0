"""Answers: prefix once, suffixes side by side, then one token at a time.

Several continuations of the same prefix, the *branches*, are answered together
as segments of one row: with 1, 5 and 50 virtual tokens, say. The prefix is
encoded once for all, and each step reads the weights once for all.
"""

import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from vtokens.method import steps, virtual_tokens
from vtokens.models.kv_cache import KVCache


@struct.dataclass
class Suffixes:
  """What follows the prefixes of a batch: C branches in each row.

  Attributes:
    ids: virtual tokens and prompts, branch after branch, `B S` int32.
    positions: of each in its branch's sequence, which goes on where the prefix
      ends, `B S` int32; -1 for padding, which is at the end of the row.
    segments: number of its branch, `B S` int32; None where C is 1.
    last: index of each branch's last token, `B C` int32; -1 where the row has
      no such branch.
  """

  ids: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S'] | None
  last: Int[Array, 'B C']


@struct.dataclass
class Endings:
  """Which tokens mean what when an answer is generated.

  Attributes:
    eos_id: fills up branches that have ended, int32 scalar.
    is_end: tokens that end an answer: eos, the end of a turn, `V`.
    is_newline: tokens whose text has a line break; they end an answer once it
      has a token that is not blank. All false: line breaks do not end it.
    is_blank: tokens whose text is only white space, `V`.
  """

  eos_id: Int[Array, '']
  is_end: Bool[Array, 'V']
  is_newline: Bool[Array, 'V']
  is_blank: Bool[Array, 'V']


@struct.dataclass
class Sampling:
  """How a token is drawn, where it is not the most likely one.

  Attributes:
    keys: of each row, `B 2` uint32: draws depend on it, the number of the
      token and nothing else.
    temperature: f32 scalar, above 0; divides the logits.
    top_p: f32 scalar in (0, 1): draws are among the most likely tokens that
      have together at least this probability (nucleus sampling, Holtzman et
      al., 2020, arXiv 1904.09751); None for draws among all.
  """

  keys: UInt32[Array, 'B 2']
  temperature: Float[Array, '']
  top_p: Float[Array, ''] | None


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
def generate(
  base: nnx.State,
  table: Float[Array, 'P D'],
  cache: KVCache,
  suffixes: Suffixes,
  endings: Endings,
  sampling: Sampling | None = None,
  *,
  graph: nnx.GraphDef,
  max_new_tokens: int,
) -> Int[Array, 'B C max_new_tokens']:
  """One token after the suffix, and so on, until all branches have ended.

  Ids of virtual tokens cannot come out: the head has no logits for them.

  Args:
    base: weights of the decoder.
    table: the virtual tokens.
    cache: of the prefix; see `encode_prefix`.
    suffixes: what follows it.
    endings: which tokens end an answer.
    sampling: how tokens are drawn; None for the most likely one (greedy).
    graph: structure of the decoder.
    max_new_tokens: longest answer.

  Returns:
    Generated ids; after a branch's end, eos. The token that ends it is kept.
  """
  decoder = nnx.merge(graph, base)
  hidden, kv = decoder(
    virtual_tokens.embed(decoder, table, suffixes.ids),
    suffixes.positions,
    [cache],
    segments=suffixes.segments,
  )
  rows, branches = suffixes.last.shape
  # The passages' cache is only read; what grows is this small one.
  tail = kv.with_room((max_new_tokens - 1) * branches)
  first_slot = suffixes.ids.shape[1]
  segments = None
  if suffixes.segments is not None:
    segments = jnp.broadcast_to(
      jnp.arange(branches, dtype=jnp.int32), (rows, branches)
    )
  last = jnp.maximum(suffixes.last, 0)
  hidden = jnp.take_along_axis(hidden, last[..., None], axis=1)
  length = jnp.take_along_axis(suffixes.positions, last, axis=1) + 1

  def pick(step, hidden, done, begun, out):
    """Chooses token number `step` and notes it."""
    logits = decoder.logits(hidden, stationary=True)
    if sampling is not None:
      logits = _perturb(logits, sampling, step)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    token = jnp.where(done, endings.eos_id, token)
    out = jax.lax.dynamic_update_slice_in_dim(
      out, token[..., None], step, axis=2
    )
    begun = begun | ~endings.is_blank[token]
    done = done | endings.is_end[token] | (begun & endings.is_newline[token])
    return token, done, begun, out

  def unfinished(carry):
    step, _, _, done, *_ = carry
    return (step < max_new_tokens) & ~done.all()

  def advance(carry):
    step, token, tail, *noted = carry
    hidden, kv = decoder(
      decoder.embed(token),
      length + step - 1,
      [cache, tail],
      segments=segments,
      stationary=True,
    )
    tail = tail.write(kv, first_slot + (step - 1) * branches)
    token, *noted = pick(step, hidden, *noted)
    return step + 1, token, tail, *noted

  shape = (rows, branches)
  token, *noted = pick(
    jnp.zeros((), jnp.int32),
    hidden,
    suffixes.last < 0,
    jnp.zeros(shape, bool),
    jnp.full((*shape, max_new_tokens), endings.eos_id, jnp.int32),
  )
  carry = (jnp.ones((), jnp.int32), token, tail, *noted)
  return jax.lax.while_loop(unfinished, advance, carry)[-1]


def _perturb(
  logits: Float[Array, 'B C V'], sampling: Sampling, step: Int[Array, '']
) -> Float[Array, 'B C V']:
  """Logits whose largest is a draw from their distribution.

  By the Gumbel-max trick (Gumbel, 1954). All branches of a row share their
  random numbers, so that they differ by what they were asked alone.
  """
  logits = logits / sampling.temperature
  noise = jax.vmap(
    lambda key: jax.random.gumbel(
      jax.random.fold_in(jax.random.wrap_key_data(key), step),
      logits.shape[-1:],
      jnp.float32,
    )
  )(sampling.keys)
  drawn = logits + noise[:, None, :]
  if sampling.top_p is None:
    return drawn
  ordered = jnp.sort(logits, axis=-1, descending=True)
  before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
  # The probability of those before it decides, so that one is always left.
  before = before - jax.nn.softmax(ordered, axis=-1)
  least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(
    axis=-1, keepdims=True
  )
  return jnp.where(logits >= least, drawn, -jnp.inf)
