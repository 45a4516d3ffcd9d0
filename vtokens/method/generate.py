"""Generates answers: the prefix once, all suffixes, then token by token.

Several continuations of one prefix, the *branches*, are segments of one row,
e.g. with 1, 5 and 50 virtual tokens. They share the encoded prefix, and each
step reads the weights once for all of them.

`generate` does all at once. `begin` and `advance` do the same in parts, so that
a caller sees tokens as they come; both give the same tokens.
"""

import dataclasses
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
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder


@struct.dataclass
class Generated:
  """What was generated: N tokens for each of C branches in B rows.

  Attributes:
    ids: tokens, with the one that ends a branch, then eos; array of shape
      [B, C, N], int32.
    log_probs: log-probability of each token, in nats, under the model's own
      distribution, whatever the sampling; 0 after the end of a branch; array
      of shape [B, C, N], float32.
    top_ids: the most likely tokens at each place, best first; array of shape
      [B, C, N, T], int32; None if they were not asked for.
    top_log_probs: their log-probabilities; array of shape [B, C, N, T],
      float32; None likewise.
    margins: logit of the token of `TokenBias` at its place, before the bias,
      minus the largest of the other logits; array of shape [B, C], float32. NaN
      for a branch without a bias, and for one that has a token that is not
      blank, or its end, before that place. None without a `TokenBias`.
  """

  ids: Int[Array, 'B C N']
  log_probs: Float[Array, 'B C N']
  top_ids: Int[Array, 'B C N T'] | None = None
  top_log_probs: Float[Array, 'B C N T'] | None = None
  margins: Float[Array, 'B C'] | None = None


@struct.dataclass
class Progress:
  """Where generation stands between two tokens.

  Attributes:
    step: number of tokens so far; int32 scalar.
    token: last token of each branch; array of shape [B, C], int32.
    tail: cache of the suffixes and the tokens so far, with room for the
      others.
    done: which branches have ended; array of shape [B, C], bool.
    begun: which branches have a token that is not blank; array of shape
      [B, C], bool.
    out: the tokens so far.
  """

  step: Int[Array, '']
  token: Int[Array, 'B C']
  tail: Cache
  done: Bool[Array, 'B C']
  begun: Bool[Array, 'B C']
  out: Generated


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
class RowLimits:
  """What ends the answers of each row, besides the tokens of `Endings`.

  Attributes:
    most: most tokens of an answer, at least 1; array of shape [B], int32.
    at_newline: whether line breaks end an answer; array of shape [B], bool.
  """

  most: Int[Array, 'B']
  at_newline: Bool[Array, 'B']


@struct.dataclass
class TokenBias:
  """A bias of one token of each branch, where its answer begins.

  Attributes:
    ids: the token; array of shape [B, C], int32.
    places: number of tokens before it in the answer, all of them blank; -1 for
      no bias; likewise.
    amounts: added to its logit before a token is chosen; array of shape [B, C],
      float32; 0 changes nothing.
  """

  ids: Int[Array, 'B C']
  places: Int[Array, 'B C']
  amounts: Float[Array, 'B C']


@struct.dataclass
class Sampling:
  """How the tokens of each row are drawn.

  Attributes:
    keys: random key of each row; array of shape [B, 2], uint32. A draw depends
      on the key and the number of the token alone.
    temperature: divides the logits; 0 takes the most likely token; array of
      shape [B], float32.
    top_p: draws are among the most likely tokens that together have at least
      this probability (nucleus sampling, Holtzman et al., 2020, arXiv
      1904.09751); 1 for draws among all tokens; array of shape [B], float32,
      values in (0, 1]; None if it is 1 in all rows.
  """

  keys: UInt32[Array, 'B 2']
  temperature: Float[Array, 'B']
  top_p: Float[Array, 'B'] | None


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
  keys: UInt32[Array, 'B 2'],
  temperature: float | Sequence[float],
  top_p: float | Sequence[float],
) -> Sampling:
  """Makes a `Sampling` of settings.

  Args:
    keys: of each row.
    temperature: of each row, or of all.
    top_p: likewise.
  """
  rows = (len(keys),)
  heat: Any = np.broadcast_to(np.asarray(temperature, np.float32), rows)
  nucleus: Any = np.broadcast_to(np.asarray(top_p, np.float32), rows)
  return Sampling(keys, heat, nucleus if (nucleus < 1).any() else None)


def make_token_bias(
  tokens: Sequence[Sequence[tuple[int, int] | None]],
  amounts: float | Sequence[float],
) -> TokenBias:
  """Makes a `TokenBias` of settings.

  Args:
    tokens: by row and branch, place and id of the token; None for none.
    amounts: of each row, or of all.

  Returns:
    NumPy arrays of shape [B, C].
  """
  pairs: Any = np.array(
    [[one or (-1, -1) for one in row] for row in tokens], np.int32
  )
  places, ids = pairs[..., 0], pairs[..., 1]
  column = np.reshape(np.asarray(amounts, np.float32), (-1, 1))
  added: Any = np.broadcast_to(column, ids.shape)
  return TokenBias(ids, places, added)


@functools.partial(jax.jit, static_argnames='graph')
def encode_prefix(
  base: nnx.State[str, Any],
  prefix: Int[Array, 'B P'],
  positions: Int[Array, 'B P'],
  *,
  graph: nnx.GraphDef[Decoder],
) -> Cache:
  """Encodes prefixes, for any number of suffixes after each."""
  return steps.encode_prefix(nnx.merge(graph, base), prefix, positions)


@functools.partial(
  jax.jit, static_argnames=('graph', 'max_new_tokens', 'trainable')
)
def generate(
  base: nnx.State[str, Any],
  trained: Values,
  cache: Cache,
  suffixes: Suffixes,
  endings: Endings,
  sampling: Sampling | None = None,
  token_bias: TokenBias | None = None,
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
    cache: of the prefixes; see `encode_prefix`.
    suffixes: what follows the prefixes.
    endings: which tokens end an answer.
    sampling: how tokens are drawn; None for the most likely one (greedy).
    token_bias: of a token at one place; None for none.
    graph: structure of the decoder.
    max_new_tokens: longest answer.
    trainable: what was trained.

  Returns:
    The tokens and their log-probabilities, and the margins of `token_bias`.
  """
  inputs = Inputs(
    base, trained, cache, suffixes, endings, sampling, token_bias=token_bias
  )
  run = _Generation(nnx.merge(graph, base), trainable, inputs)
  return run.advance(run.begin(max_new_tokens, 0), max_new_tokens).out


@struct.dataclass
class Inputs:
  """Arrays that `begin` and every `advance` after it need.

  Attributes:
    base: see `generate`.
    trained: see `generate`.
    cache: see `generate`.
    suffixes: see `generate`.
    endings: see `generate`.
    sampling: see `generate`.
    limits: what else ends an answer; None for nothing.
    token_bias: see `generate`.
  """

  base: nnx.State[str, Any]
  trained: Values
  cache: Cache
  suffixes: Suffixes
  endings: Endings
  sampling: Sampling | None = None
  limits: RowLimits | None = None
  token_bias: TokenBias | None = None


@functools.partial(
  jax.jit, static_argnames=('graph', 'max_new_tokens', 'trainable', 'num_top')
)
def begin(
  inputs: Inputs,
  *,
  graph: nnx.GraphDef[Decoder],
  max_new_tokens: int,
  trainable: Trainable,
  num_top: int = 0,
) -> Progress:
  """Generates the first token of each branch; `advance` goes on.

  Args:
    inputs: prompts, and how to continue them.
    graph: see `generate`.
    max_new_tokens: longest answer of all rows.
    trainable: see `generate`.
    num_top: number of most likely tokens to note at each place.

  Returns:
    What `advance` continues.
  """
  run = _Generation(nnx.merge(graph, inputs.base), trainable, inputs)
  return run.begin(max_new_tokens, num_top)


@functools.partial(jax.jit, static_argnames=('graph', 'trainable'))
def advance(
  inputs: Inputs,
  progress: Progress,
  stopped: Bool[Array, 'B'],
  last: Int[Array, ''],
  *,
  graph: nnx.GraphDef[Decoder],
  trainable: Trainable,
) -> Progress:
  """Generates further tokens, until all branches have ended.

  Args:
    inputs: those of `begin`.
    progress: what `begin` or `advance` returned for the same inputs.
    stopped: rows that the caller has ended; array of shape [B], bool.
    last: number of tokens after which to return, counted from the first one;
      at most the `max_new_tokens` of `begin`; int32 scalar.
    graph: see `generate`.
    trainable: see `generate`.

  Returns:
    What the next `advance` continues.
  """
  run = _Generation(nnx.merge(graph, inputs.base), trainable, inputs)
  ended = progress.done | stopped[:, None]
  return run.advance(dataclasses.replace(progress, done=ended), last)


@dataclasses.dataclass(frozen=True, eq=False)
class _Generation:
  """The parts of `generate`, to be traced.

  Attributes:
    decoder: the base.
    trainable: see `generate`.
    inputs: prompts, and how to continue them.
  """

  decoder: Decoder
  trainable: Trainable
  inputs: Inputs

  @functools.cached_property
  def _before(self) -> list[Cache]:
    """The caches that are only read."""
    inputs = self.inputs
    own = self.trainable.caches(
      self.decoder, inputs.trained, inputs.suffixes.spans
    )
    return [inputs.cache, *own]

  @functools.cached_property
  def _last(self) -> Int[Array, 'B C']:
    return jnp.maximum(self.inputs.suffixes.last, 0)

  def begin(self, max_new_tokens: int, num_top: int) -> Progress:
    """Runs the suffixes and chooses the first token."""
    suffixes, endings = self.inputs.suffixes, self.inputs.endings
    hidden, kv = self.decoder(
      self.trainable.embed(self.decoder, self.inputs.trained, suffixes.ids),
      suffixes.positions,
      self._before,
      ids=suffixes.ids,
      segments=suffixes.segments,
      num_segments=suffixes.last.shape[1],
    )
    shape = suffixes.last.shape
    branches = shape[1]
    # The caches before are only read; this small one grows.
    tail = kv.with_room((max_new_tokens - 1) * branches)
    hidden = jnp.take_along_axis(hidden, self._last[..., None], axis=1)
    places = (*shape, max_new_tokens)
    out = Generated(
      jnp.full(places, endings.eos_id, jnp.int32),
      jnp.zeros(places, jnp.float32),
    )
    if num_top:
      out = dataclasses.replace(
        out,
        top_ids=jnp.zeros((*places, num_top), jnp.int32),
        top_log_probs=jnp.zeros((*places, num_top), jnp.float32),
      )
    if self.inputs.token_bias is not None:
      out = dataclasses.replace(out, margins=jnp.full(shape, jnp.nan))
    start = Progress(
      step=jnp.zeros((), jnp.int32),
      token=jnp.zeros(shape, jnp.int32),
      tail=tail,
      done=suffixes.last < 0,
      begun=jnp.zeros(shape, bool),
      out=out,
    )
    return self._pick(start, hidden)

  def advance(self, progress: Progress, last: int | Int[Array, '']) -> Progress:
    """Generates tokens until there are `last`."""
    rows, branches = self.inputs.suffixes.last.shape
    first_slot = self.inputs.suffixes.ids.shape[1]
    segments = None
    if self.inputs.suffixes.segments is not None:
      segments = jnp.broadcast_to(
        jnp.arange(branches, dtype=jnp.int32), (rows, branches)
      )
    positions = self.inputs.suffixes.positions
    length = jnp.take_along_axis(positions, self._last, axis=1) + 1

    def unfinished(now: Progress) -> Bool[Array, '']:
      return (now.step < last) & ~now.done.all()

    def go_on(now: Progress) -> Progress:
      hidden, kv = self.decoder(
        self.decoder.embed(now.token),
        length + now.step - 1,
        [*self._before, now.tail],
        ids=now.token,
        segments=segments,
        num_segments=branches,
        stationary=True,
      )
      tail = now.tail.write(kv, first_slot + (now.step - 1) * branches)
      return self._pick(dataclasses.replace(now, tail=tail), hidden)

    # Outside the loop, so that it is computed once.
    _ = self._before
    done: Progress = jax.lax.while_loop(unfinished, go_on, progress)
    return done

  def _pick(self, now: Progress, hidden: Float[Array, 'B C D']) -> Progress:
    """Chooses the next token of each branch."""
    endings, step = self.inputs.endings, now.step
    logits = self.decoder.logits(hidden, stationary=True)
    scores, margins = logits, now.out.margins
    bias = self.inputs.token_bias
    if bias is not None and margins is not None:
      here = (step == bias.places) & ~now.begun & ~now.done
      # As in `_log_prob`, no gather.
      is_it = jnp.arange(logits.shape[-1]) == bias.ids[..., None]
      raised = is_it & here[..., None]
      scores = jnp.where(raised, logits + bias.amounts[..., None], logits)
      own = jnp.where(is_it, logits, 0.0).sum(axis=-1)
      other = jnp.where(is_it, -jnp.inf, logits).max(axis=-1)
      margins = jnp.where(here, own - other, margins)
    if self.inputs.sampling is not None:
      scores = _perturb(scores, self.inputs.sampling, step)
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    log_prob = jnp.where(now.done, 0.0, _log_prob(logits, token))
    token = jnp.where(now.done, endings.eos_id, token)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
    out = dataclasses.replace(
      now.out,
      ids=put(now.out.ids, token[..., None], step),
      log_probs=put(now.out.log_probs, log_prob[..., None], step),
      margins=margins,
    )
    if out.top_ids is not None and out.top_log_probs is not None:
      number = out.top_ids.shape[-1]
      best, ids = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), number)
      out = dataclasses.replace(
        out,
        top_ids=put(out.top_ids, ids[..., None, :].astype(jnp.int32), step),
        top_log_probs=put(out.top_log_probs, best[..., None, :], step),
      )
    begun = now.begun | ~endings.is_blank[token]
    newline = begun & endings.is_newline[token]
    if self.inputs.limits is not None:
      newline &= self.inputs.limits.at_newline[:, None]
    done = now.done | endings.is_end[token] | newline
    if self.inputs.limits is not None:
      done |= step + 1 >= self.inputs.limits.most[:, None]
    return Progress(step + 1, token, now.tail, done, begun, out)


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
  numbers, so that they differ only by their suffixes. Rows of temperature 0
  keep their logits.
  """
  drawing = (sampling.temperature > 0)[:, None, None]
  heat = jnp.where(drawing, sampling.temperature[:, None, None], 1.0)
  scaled = logits / heat
  noise = jax.vmap(
    lambda key: jax.random.gumbel(
      jax.random.fold_in(jax.random.wrap_key_data(key), step),
      logits.shape[-1:],
      jnp.float32,
    )
  )(sampling.keys)
  drawn = scaled + noise[:, None, :]
  if sampling.top_p is not None:
    top_p = sampling.top_p[:, None, None]
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    # The probability of all likelier tokens decides, so that one always stays.
    before = before - jax.nn.softmax(ordered, axis=-1)
    least = jnp.where(before < top_p, ordered, jnp.inf).min(
      axis=-1, keepdims=True
    )
    kept = (scaled >= least) | (top_p >= 1)
    drawn = jnp.where(kept, drawn, -jnp.inf)
  return jnp.where(drawing, drawn, logits)
