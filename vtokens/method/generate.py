"""Generates answers: the prefix once, all suffixes, then token by token.

Several continuations of one prefix, the *branches*, are segments of one row,
e.g. with 1, 5 and 50 virtual tokens. They share the encoded prefix, and each
step reads the weights once for all of them.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from vtokens.data.batch import Spans
from vtokens.method import steps
from vtokens.method.trainable import Trainable, Values
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.decoder import Decoder
from vtokens.models.kv_cache import KVCache


@struct.dataclass
class Generated:
  """What was generated: N tokens for each of C branches in B rows.

  Attributes:
    ids: tokens, with the one that ends a branch, then eos; array of shape
      [B, C, N], int32.
    log_probs: log-probability of each token, in nats, under the model's own
      distribution, whatever the sampling; 0 after the end of a branch; array
      of shape [B, C, N], float32.
  """

  ids: Int[Array, 'B C N']
  log_probs: Float[Array, 'B C N']


# What a step of `generate` hands to the next: number of the step, last tokens,
# their cache, which branches are done, which have begun, all tokens so far.
_Carry = tuple[
  Int[Array, ''],
  Int[Array, 'B C'],
  KVCache,
  Bool[Array, 'B C'],
  Bool[Array, 'B C'],
  Generated,
]


@struct.dataclass
class Suffixes:
  """The suffixes of a batch: C branches in each row.

  Attributes:
    ids: virtual tokens and prompts, branch after branch; array of shape [B, S],
      int32.
    positions: position of each token in its branch, counted on from the prefix;
      array of shape [B, S], int32; -1 for padding, at the end of the row.
    segments: number of each token's branch; array of shape [B, S], int32; None
      if C is 1.
    last: index of each branch's last token; array of shape [B, C], int32; -1
      if the row lacks the branch.
    spans: place of the virtual tokens of each branch; None if they are among
      the ids.
  """

  ids: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S'] | None
  last: Int[Array, 'B C']
  spans: Spans | None = None


@struct.dataclass
class Endings:
  """Which tokens end an answer; masks are arrays of shape [V], bool.

  Attributes:
    eos_id: fills branches that have ended; int32 scalar.
    is_end: tokens that end an answer: eos, the end of a turn.
    is_newline: tokens with a line break, which end an answer once it has a
      token that is not blank. If all are false, line breaks end no answer.
    is_blank: tokens of white space alone.
  """

  eos_id: Int[Array, '']
  is_end: Bool[Array, 'V']
  is_newline: Bool[Array, 'V']
  is_blank: Bool[Array, 'V']


@struct.dataclass
class Sampling:
  """How tokens are drawn.

  Attributes:
    keys: random key of each row; array of shape [B, 2], uint32. A draw depends
      on the key and the number of the token alone.
    temperature: divides the logits; float32 scalar above 0.
    top_p: draws are among the most likely tokens that together have at least
      this probability (nucleus sampling, Holtzman et al., 2020, arXiv
      1904.09751); float32 scalar in (0, 1); None for draws among all tokens.
  """

  keys: UInt32[Array, 'B 2']
  temperature: Float[Array, '']
  top_p: Float[Array, ''] | None


def end_mask(end_ids: Iterable[int], vocab_size: int) -> Bool[np.ndarray, 'V']:
  """Marks the tokens that end an answer; array of shape [V], bool.

  Tokenizer files may list ids that the model does not have; these are ignored.
  """
  mask = np.zeros(vocab_size, bool)
  mask[[i for i in end_ids if 0 <= i < vocab_size]] = True
  return mask


def sampling_keys(names: Sequence[str], rows: int) -> UInt32[np.ndarray, 'B 2']:
  """Makes the key of each row from its name alone; further rows have zeros.

  Args:
    names: what the draws of each row depend on, the seed included.
    rows: number of rows of the batch.

  Returns:
    Array of shape [B, 2], uint32.
  """
  keys = np.zeros((rows, 2), np.uint32)
  for row, name in enumerate(names):
    digest = hashlib.sha256(name.encode()).digest()
    keys[row] = np.frombuffer(digest[:8], np.uint32)
  return keys


def make_sampling(
  keys: UInt32[Array, 'B 2'], temperature: float, top_p: float
) -> Sampling:
  """Makes a `Sampling` of settings; top_p 1 draws from all tokens."""
  heat: Any = np.float32(temperature)
  nucleus: Any = np.float32(top_p) if top_p < 1 else None
  return Sampling(keys, heat, nucleus)


@functools.partial(jax.jit, static_argnames='graph')
def encode_prefix(
  base: nnx.State[str, Any],
  prefix: Int[Array, 'B P'],
  positions: Int[Array, 'B P'],
  *,
  graph: nnx.GraphDef[Decoder],
) -> KVCache:
  """Encodes prefixes, for any number of suffixes after each."""
  return steps.encode_prefix(nnx.merge(graph, base), prefix, positions)


@functools.partial(
  jax.jit, static_argnames=('graph', 'max_new_tokens', 'trainable')
)
def generate(
  base: nnx.State[str, Any],
  trained: Values,
  cache: KVCache,
  suffixes: Suffixes,
  endings: Endings,
  sampling: Sampling | None = None,
  *,
  graph: nnx.GraphDef[Decoder],
  max_new_tokens: int,
  trainable: Trainable = TABLE,
) -> Generated:
  """Generates tokens after the suffixes until all branches have ended.

  Virtual tokens cannot be generated: the head has no logits for them.

  Args:
    base: weights of the decoder.
    trained: values of the trainable.
    cache: keys and values of the prefixes; see `encode_prefix`.
    suffixes: what follows the prefixes.
    endings: which tokens end an answer.
    sampling: how tokens are drawn; None for the most likely one (greedy).
    graph: structure of the decoder.
    max_new_tokens: longest answer.
    trainable: what was trained.

  Returns:
    The tokens and their log-probabilities.
  """
  decoder = nnx.merge(graph, base)
  before = [
    cache,
    *trainable.caches(decoder, trained, suffixes.spans),
  ]
  hidden, kv = decoder(
    trainable.embed(decoder, trained, suffixes.ids),
    suffixes.positions,
    before,
    segments=suffixes.segments,
  )
  rows, branches = suffixes.last.shape
  # The caches before are only read; this small one grows.
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

  def pick(
    step: Int[Array, ''],
    hidden: Float[Array, 'B C D'],
    done: Bool[Array, 'B C'],
    begun: Bool[Array, 'B C'],
    out: Generated,
  ) -> tuple[
    Int[Array, 'B C'],
    Bool[Array, 'B C'],
    Bool[Array, 'B C'],
    Generated,
  ]:
    """Chooses token number `step`."""
    logits = decoder.logits(hidden, stationary=True)
    scores = logits
    if sampling is not None:
      scores = _perturb(logits, sampling, step)
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    log_prob = jnp.where(done, 0.0, _log_prob(logits, token))
    token = jnp.where(done, endings.eos_id, token)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
    out = Generated(
      put(out.ids, token[..., None], step),
      put(out.log_probs, log_prob[..., None], step),
    )
    begun = begun | ~endings.is_blank[token]
    done = done | endings.is_end[token] | (begun & endings.is_newline[token])
    return token, done, begun, out

  def unfinished(carry: _Carry) -> Bool[Array, '']:
    step, _, _, done, *_ = carry
    return (step < max_new_tokens) & ~done.all()

  def advance(carry: _Carry) -> _Carry:
    step, token, tail, done, begun, out = carry
    hidden, kv = decoder(
      decoder.embed(token),
      length + step - 1,
      [*before, tail],
      segments=segments,
      stationary=True,
    )
    tail = tail.write(kv, first_slot + (step - 1) * branches)
    token, done, begun, out = pick(step, hidden, done, begun, out)
    return step + 1, token, tail, done, begun, out

  shape = (rows, branches)
  token, done, begun, out = pick(
    jnp.zeros((), jnp.int32),
    hidden,
    suffixes.last < 0,
    jnp.zeros(shape, bool),
    Generated(
      jnp.full((*shape, max_new_tokens), endings.eos_id, jnp.int32),
      jnp.zeros((*shape, max_new_tokens), jnp.float32),
    ),
  )
  carry = (jnp.ones((), jnp.int32), token, tail, done, begun, out)
  return jax.lax.while_loop(unfinished, advance, carry)[-1]


def _log_prob(
  logits: Float[Array, 'B C V'], token: Int[Array, 'B C']
) -> Float[Array, 'B C']:
  """The log-probability of a token, float32 array of shape [B, C]."""
  # A sum with one term that is not 0. Unlike a gather, it takes each device's
  # part of a vocabulary that is sharded.
  is_it = jnp.arange(logits.shape[-1]) == token[..., None]
  chosen = jnp.where(is_it, logits, 0.0).sum(axis=-1)
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def _perturb(
  logits: Float[Array, 'B C V'], sampling: Sampling, step: Int[Array, '']
) -> Float[Array, 'B C V']:
  """Perturbs logits so that the largest is a draw from their distribution.

  Uses the Gumbel-max trick (Gumbel, 1954). All branches of a row share random
  numbers, so that they differ only by their suffixes.
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
  # The probability of all likelier tokens decides, so that one always stays.
  before = before - jax.nn.softmax(ordered, axis=-1)
  least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(
    axis=-1, keepdims=True
  )
  return jnp.where(logits >= least, drawn, -jnp.inf)
