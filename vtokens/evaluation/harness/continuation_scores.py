"""Log-probabilities of continuations, such as the options of a question.

common start of all prompts --one row--> cache that all rows see
rest of each prompt --a row each--> cache that the options of this row see
options, side by side as segments of the row --> log-probability of each token
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vtokens.data.prompt_encoder import Ids
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.harness import prompt_batches
from vtokens.host import stopping, writers
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder
from vtokens.models.frozen_base import FrozenBase

# Least padded length of the options of a row, together.
_OPTIONS_BUCKET = 32
# Columns of a row whose logits exist at the same time; divides the above.
_LOGITS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Item:
  """A prompt and its continuations.

  Attributes:
    prompt: ids, bos and virtual tokens included, int32; at least one.
    options: ids of each continuation, int32; at least one each.
  """

  prompt: Ids
  options: tuple[Ids, ...]

  @property
  def num_option_tokens(self) -> int:
    """Number of tokens of all options together."""
    return sum(map(len, self.options))


class Score(NamedTuple):
  """How likely a continuation is.

  Attributes:
    log_probability: the sum over its tokens, in nats.
    is_greedy: whether each of its tokens is the most likely one.
  """

  log_probability: float
  is_greedy: bool


@struct.dataclass
class _Rows:
  """A batch of items.

  Attributes:
    prompt: ids of each prompt without the common start and without its last
      token, array of shape [B, P], int32.
    prompt_positions: of these ids, [B, P], int32; -1 for padding here and
      below.
    inputs: for each option the last token of the prompt and all tokens of the
      option but its last, [B, S], int32.
    positions: of the inputs, [B, S], int32.
    segments: number of the option, [B, S], int32.
    targets: the tokens of the options, [B, S], int32.
    num_options: most options of an item; static.
  """

  prompt: Int[Array, 'B P']
  prompt_positions: Int[Array, 'B P']
  inputs: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  segments: Int[Array, 'B S']
  targets: Int[Array, 'B S']
  num_options: int = struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnames='graph')
def _score_targets(
  base: nnx.State[str, Any],
  table: Float[Array, 'P D'],
  start: Cache,
  rows: _Rows,
  *,
  graph: nnx.GraphDef[Decoder],
) -> tuple[Float[Array, 'B S'], Bool[Array, 'B S']]:
  """Log-probability of each target, float32, and whether it is the largest."""
  decoder = nnx.merge(graph, base)
  before = start.repeated(rows.prompt.shape[0])
  _, own = decoder(
    TABLE.embed(decoder, table, rows.prompt),
    rows.prompt_positions,
    [before],
    ids=rows.prompt,
  )
  hidden, _ = decoder(
    TABLE.embed(decoder, table, rows.inputs),
    rows.positions,
    [before, own],
    ids=rows.inputs,
    segments=rows.segments,
    num_segments=rows.num_options,
  )

  def some(
    part: tuple[Float[Array, 'B n D'], Int[Array, 'B n']],
  ) -> tuple[Float[Array, 'B n'], Bool[Array, 'B n']]:
    hidden, targets = part
    logits = decoder.logits(hidden)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    best = picked >= logits.max(axis=-1)
    return picked - jax.nn.logsumexp(logits, axis=-1), best

  # A few columns at a time: with a vocabulary of 50,000, the logits of 32 rows
  # with 64 columns are 400 MB.
  columns = jax.tree.map(
    lambda x: x.reshape(x.shape[0], -1, _LOGITS_AT_ONCE, *x.shape[2:]).swapaxes(
      0, 1
    ),
    (hidden, rows.targets),
  )
  scores: tuple[Array, Array] = jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(rows.targets.shape),
    jax.lax.map(some, columns),
  )
  return scores


def score(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  items: Sequence[Item],
  *,
  table: Float[np.ndarray, 'P D'],
  batch_size: int,
  label: str,
  stop: stopping.StopRequest,
) -> Iterator[tuple[list[int], list[list[Score]]]]:
  """Scores every option of every item.

  Scores do not depend on the batch, up to the order of floating-point sums.

  Args:
    base: the frozen model.
    mesh: the devices; rows of a batch lie over data and fsdp.
    items: what to score.
    table: of virtual tokens, array of shape [P, D], float32; the id of its row
      i is `vocab_size + i`.
    batch_size: items at a time; see `prompt_batches.num_rows`.
    label: of the progress bar.
    stop: drops the batch that is being scored.

  Yields:
    Numbers of some items, and the scores of the options of each.
  """
  prompts = [item.prompt for item in items]
  # Only recurrent layers need it; others share programs without it.
  options = max((len(item.options) for item in items), default=1)
  options = options if base.config.is_recurrent else 1
  with writers.progress(
    total=len(items), desc=label, unit='prompt', leave=False
  ) as bar:
    for group, common, start in prompt_batches.started_groups(
      base, table, prompts, batch_size, stop
    ):
      size = prompt_batches.num_rows(mesh, len(group), batch_size)
      lengths = functools.partial(_padded_lengths, items, common)
      for index in prompt_batches.batches(group, size, lengths):
        stop.check_together()
        some = [items[i] for i in index]
        rows = _collate(some, common, size, options)

        def batch(
          rows: _Rows = rows, start: Cache = start, size: int = size
        ) -> list[np.ndarray]:
          found = _score_targets(
            base.params,
            table,
            start,
            partitioning.shard_rows(rows, mesh, size),
            graph=base.graph,
          )
          return [distributed.fetch(part) for part in found]

        found = zip(*stop.run(batch), some, strict=False)
        yield index, [_sums(*row) for row in found]
        bar.update(len(index))


def _sums(
  log_probabilities: np.ndarray, is_best: np.ndarray, item: Item
) -> list[Score]:
  ends = np.cumsum([len(ids) for ids in item.options])
  return [
    Score(
      float(log_probabilities[a:b].astype(np.float64).sum()),
      bool(is_best[a:b].all()),
    )
    for a, b in zip([0, *ends[:-1]], ends, strict=True)
  ]


def _padded_lengths(
  items: Sequence[Item], common: int, i: int
) -> tuple[int, int]:
  """Padded lengths of the rest of a prompt and of all its options."""
  rest = len(items[i].prompt) - common - 1
  return (
    prompt_batches.bucket(rest, prompt_batches.PROMPT_BUCKET),
    prompt_batches.bucket(items[i].num_option_tokens, _OPTIONS_BUCKET),
  )


def _collate(
  items: Sequence[Item], common: int, num_rows: int, num_options: int
) -> _Rows:
  """Writes items into arrays; rows without an item are padding."""
  lengths = [_padded_lengths(items, common, i) for i in range(len(items))]
  prompts, options = (max(sizes) for sizes in zip(*lengths, strict=True))

  def empty(size: int, fill: int) -> Any:
    return np.full((num_rows, size), fill, np.int32)

  rows = _Rows(
    prompt=empty(prompts, 0),
    prompt_positions=empty(prompts, -1),
    inputs=empty(options, 0),
    positions=empty(options, -1),
    segments=empty(options, -1),
    targets=empty(options, 0),
    num_options=num_options,
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
