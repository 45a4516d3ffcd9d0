"""Log-likelihoods of the options of multiple-choice questions.

what all prompts of a group begin with --once, one row--> cache, seen by all
the rest of each prompt --a row each--> cache, seen by the options of its row
options, side by side as segments of that row --> log-probability of each token
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from vtokens.data.assemble import Ids
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking import answering
from vtokens.host import errors, stopping, writers
from vtokens.method import steps
from vtokens.models.frozen_base import FrozenBase, OpenBase
from vtokens.models.kv_cache import KVCache
from vtokens.models.tokenizers.tokenizer import Tokenizer

# Lengths are padded to multiples of these, so that few shapes are compiled.
_PROMPT_ROUND, _OPTIONS_ROUND = 64, 32
# Tokens of a row whose logits exist at the same time: a divisor of the above.
_LOGITS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Item:
  """A question to be scored.

  Attributes:
    id: for messages.
    group: items of the same group may have prompts that begin alike.
    prompt: ids up to the option, bos included, int32; at least one.
    options: ids of each option, int32; at least one each.
  """

  id: str
  group: str
  prompt: Ids
  options: tuple[Ids, ...]

  @property
  def num_option_tokens(self) -> int:
    """Of all options together."""
    return sum(map(len, self.options))


def make_item(
  tokenizer: Tokenizer,
  prompt: str,
  options: Sequence[str],
  *,
  id: str,
  group: str = '',
) -> Item:
  """Ids of a question: bos, the prompt, and each option after a space."""
  return Item(
    id=id,
    group=group,
    prompt=prompt_ids(tokenizer, prompt),
    options=tuple(
      np.asarray(ids, np.int32)
      for ids in tokenizer.encode_batch_after([f' {o}' for o in options])
    ),
  )


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> Ids:
  """Ids of a prompt after bos, or what else the tokenizer begins with."""
  return np.asarray(
    [*tokenizer.prefix_ids, *tokenizer.encode(prompt)], np.int32
  )


def check_fits(
  base: OpenBase | FrozenBase, items: Sequence[Item], where: str
) -> None:
  """Raises if a question is longer than the base is made for.

  Args:
    base: the model.
    items: the questions.
    where: names their task in the error.

  Raises:
    errors.UserError: with the longest of them.
  """
  longest = max(items, key=_length)
  check_length(base, _length(longest), f'{where}: question {longest.id}')


def check_length(base: OpenBase | FrozenBase, length: int, where: str) -> None:
  """Raises a `UserError` about `where` if so many tokens are too many."""
  most = base.config.longest_sequence
  # Elsewhere positions do not depend on it; see `DecoderConfig`.
  if any(
    kind.rope is not None and kind.rope.type in ('dynamic', 'longrope')
    for kind in base.config.layer_pattern
  ):
    most = base.config.context_length or most
  if length > most:
    raise errors.UserError(
      f'{where} has {length:,} tokens with its examples and answer, more '
      f'than the {most:,} of the base; fewer shots would help'
    )


def _length(item: Item) -> int:
  return len(item.prompt) + max(map(len, item.options))


@struct.dataclass
class _Rows:
  """A batch of questions.

  Attributes:
    prompt: ids of each prompt without what it shares with the others and
      without its last token, `B P` int32.
    prompt_positions: of these, `B P` int32; -1 for padding, likewise below.
    inputs: for each option the last token of the prompt and all tokens of the
      option but its last, `B S` int32.
    positions: of these, `B S` int32.
    segments: number of the option, `B S` int32.
    targets: the tokens of the options, `B S` int32.
  """

  prompt: Int[Array, 'B P']
  prompt_positions: Int[Array, 'B P']
  inputs: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S']
  targets: Int[Array, 'B S']


@functools.partial(jax.jit, static_argnames='graph')
def _encode(
  base: nnx.State,
  ids: Int[Array, '1 P'],
  positions: Int[Array, '1 P'],
  *,
  graph: nnx.GraphDef,
) -> KVCache:
  return steps.encode_prefix(nnx.merge(graph, base), ids, positions)


@functools.partial(jax.jit, static_argnames='graph')
def _log_probs(
  base: nnx.State, shared: KVCache, rows: _Rows, *, graph: nnx.GraphDef
) -> Float[Array, 'B S']:
  """Log-probability of each target, f32."""
  decoder = nnx.merge(graph, base)
  before = repeat_row(shared, rows.prompt.shape[0])
  _, own = decoder(decoder.embed(rows.prompt), rows.prompt_positions, [before])
  hidden, _ = decoder(
    decoder.embed(rows.inputs),
    rows.positions,
    [before, own],
    segments=rows.segments,
  )

  def some(part):
    hidden, targets = part
    logits = decoder.logits(hidden)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)

  # A few columns at a time: at 50k rows of the vocabulary, the logits of 32
  # questions with 64 tokens of options would be 400 MB.
  columns = jax.tree.map(
    lambda x: x.reshape(x.shape[0], -1, _LOGITS_AT_ONCE, *x.shape[2:]).swapaxes(
      0, 1
    ),
    (hidden, rows.targets),
  )
  found = jax.lax.map(some, columns)
  return found.swapaxes(0, 1).reshape(rows.targets.shape)


def repeat_row(cache: KVCache, rows: int) -> KVCache:
  """A cache of one row as one of many rows, all the same."""

  def repeat(x: Array, axis: int) -> Array:
    shape = list(x.shape)
    shape[axis] = rows
    return jnp.broadcast_to(x, shape)

  return KVCache(
    repeat(cache.k, -4), repeat(cache.v, -4), repeat(cache.positions, 0)
  )


def score(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  items: Sequence[Item],
  *,
  batch_size: int,
  label: str,
  stop: stopping.StopRequest | None = None,
) -> list[Float[np.ndarray, 'C']]:
  """Log-probability of each option after its prompt.

  It does not depend on the batch: rows and options do not see one another.

  Args:
    base: the frozen model.
    mesh: the devices; rows of a batch lie over data and fsdp.
    items: the questions.
    batch_size: of them at a time; see `num_rows`.
    label: of the progress bar.
    stop: drops the batch that is being scored.

  Returns:
    For each item the natural logarithm of the probability of each option,
    summed over its tokens, f64.
  """
  stop = stop or stopping.StopRequest()
  scores: list[Float[np.ndarray, 'C']] = [np.zeros(0)] * len(items)
  with writers.progress(
    total=len(items),
    desc=label,
    unit='question',
    leave=False,
  ) as bar:
    for group in _groups(items):
      common = common_start([items[i].prompt for i in group])
      begin = functools.partial(
        encode_shared, base, items[group[0]].prompt[:common]
      )
      shared = stop.run(begin)
      size = num_rows(mesh, len(group), batch_size)
      for index in batches(group, size, lambda i: len(items[i].prompt)):
        stop.check_together()
        rows = _collate([items[i] for i in index], common, size)

        def batch(rows=rows, shared=shared, size=size):
          return distributed.fetch(
            _log_probs(
              base.params,
              shared,
              partitioning.shard_rows(rows, mesh, size),
              graph=base.graph,
            )
          )

        found = stop.run(batch).astype(np.float64)
        for row, i in zip(found, index, strict=False):
          ends = np.cumsum([len(ids) for ids in items[i].options])
          starts = [0, *ends[:-1]]
          scores[i] = np.array(
            [row[a:b].sum() for a, b in zip(starts, ends, strict=True)]
          )
        bar.update(len(index))
  return scores


def common_start(prompts: Sequence[Ids]) -> int:
  """How many ids all prompts begin with; at least one of each remains."""
  common = min(map(len, prompts)) - 1
  first = prompts[0]
  for ids in prompts[1:]:
    differ = np.flatnonzero(ids[:common] != first[:common])
    common = int(differ[0]) if len(differ) else common
  return common


def encode_shared(base: FrozenBase, ids: Ids) -> KVCache:
  """The cache of what precedes every row, itself of one row."""
  size = answering.round_up(len(ids), _PROMPT_ROUND)
  padded, positions = np.zeros((1, size), np.int32), np.full((1, size), -1)
  padded[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(len(ids))
  return _encode(
    base.params, padded, positions.astype(np.int32), graph=base.graph
  )


def num_rows(mesh: jax.sharding.Mesh, count: int, batch_size: int) -> int:
  """Rows of a batch, a multiple of the devices along data and fsdp.

  Args:
    mesh: the devices.
    count: questions that there are; for few, a batch has hardly more rows,
      and one of few sizes.
    batch_size: most questions at a time, but for the multiple.
  """
  size = min(batch_size, 1 << (count - 1).bit_length())
  return partitioning.round_up_rows(mesh, size)


def batches(
  index: Sequence[int], size: int, length: Callable[[int], int]
) -> Iterator[list[int]]:
  """Cuts a list into batches of about equal length, longest first."""
  order = sorted(index, key=lambda i: -length(i))
  for start in range(0, len(order), size):
    yield order[start : start + size]


def _groups(items: Sequence[Item]) -> list[list[int]]:
  """Numbers of the items of each group."""
  order = sorted(range(len(items)), key=lambda i: items[i].group)
  return [
    list(members)
    for _, members in itertools.groupby(order, lambda i: items[i].group)
  ]


def _collate(items: Sequence[Item], common: int, num_rows: int) -> _Rows:
  """Writes questions into arrays; rows without one are padding."""
  longest = max(len(item.prompt) - common - 1 for item in items)
  widest = max(item.num_option_tokens for item in items)

  def empty(size: int, fill: int) -> Any:
    return np.full((num_rows, size), fill, np.int32)

  prompts = answering.round_up(longest, _PROMPT_ROUND)
  options = answering.round_up(widest, _OPTIONS_ROUND)
  rows = _Rows(
    prompt=empty(prompts, 0),
    prompt_positions=empty(prompts, -1),
    inputs=empty(options, 0),
    positions=empty(options, -1),
    segments=empty(options, -1),
    targets=empty(options, 0),
  )
  for r, item in enumerate(items):
    rest = item.prompt[common:-1]
    rows.prompt[r, : len(rest)] = rest
    last = len(item.prompt) - 1
    rows.prompt_positions[r, : len(rest)] = np.arange(common, last)
    stop = 0
    for number, ids in enumerate(item.options):
      start, stop = stop, stop + len(ids)
      rows.inputs[r, start] = item.prompt[-1]
      rows.inputs[r, start + 1 : stop] = ids[:-1]
      rows.positions[r, start:stop] = np.arange(last, last + len(ids))
      rows.segments[r, start:stop] = number
      rows.targets[r, start:stop] = ids
  return rows
