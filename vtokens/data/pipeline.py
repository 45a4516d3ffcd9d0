"""Records to batches: every batch is a pure function of (seed, step).

records --grain: shuffle, repeat--> draw passages, order, answer, k
  --> assemble --> window of `window_batches` batches, sorted by length
  --> pad to a bucket --> Batch
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from vtokens import config, errors
from vtokens.data.assemble import Assembler, Example
from vtokens.data.records import Passage, Record
from vtokens.steps import Batch

# Streams of random numbers derived from one seed; they must never coincide.
_DRAW, _WINDOW, _EVAL = 1, 2, 3


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
  """What chance decides about one example.

  Attributes:
    passages: (rank, passage) in the order shown.
    answer: one of the record's answers.
    num_active: virtual tokens.
  """

  passages: tuple[tuple[int, Passage], ...]
  answer: str
  num_active: int


@dataclasses.dataclass(frozen=True)
class HostBatch:
  """A batch and what the host wants to know about it.

  Attributes:
    batch: numpy arrays.
    ids: of the records, in row order; shorter than the batch where the rest
      is padding.
    passages_dropped: over all examples.
    passages_cut: over all examples.
  """

  batch: Batch
  ids: tuple[str, ...]
  passages_dropped: int = 0
  passages_cut: int = 0


def draw(
  record: Record,
  data: config.Data,
  tokens: config.VirtualTokens,
  seed: int,
  epoch: int,
  index: int,
) -> Draw:
  """The random choices for a record in an epoch.

  Args:
    record: the record.
    data: how many passages, in which order.
    tokens: how k is drawn; for per_batch, k is n here and replaced later.
    seed: of the run.
    epoch: from 0.
    index: of the record in the training set.

  Returns:
    A pure function of the arguments.
  """
  rng = np.random.default_rng([seed, _DRAW, epoch, index])
  low, high = data.num_passages
  ranked = record.ranked()
  count = min(int(rng.integers(low, high + 1)), len(ranked))
  ranks = np.arange(len(ranked))
  if data.shuffle_passages:
    ranks = rng.permutation(ranks)
  answer = record.answers[int(rng.integers(len(record.answers)))]
  if tokens.draw == 'fixed':
    num_active = tokens.num_active
  elif tokens.draw == 'uniform':
    num_active = int(rng.integers(1, tokens.num_virtual_tokens + 1))
  elif tokens.draw == 'power':
    k = np.arange(1, tokens.num_virtual_tokens + 1)
    weights = k**-tokens.draw_exponent
    num_active = int(rng.choice(k, p=weights / weights.sum()))
  else:
    num_active = tokens.num_virtual_tokens
  return Draw(
    passages=tuple((int(r), ranked[r]) for r in ranks[:count]),
    answer=answer,
    num_active=num_active,
  )


def shown_passages(
  record: Record, count: int, shuffle: bool, seed: int
) -> tuple[tuple[int, Passage], ...]:
  """The top `count` passages as evaluation shows them, with their ranks.

  Args:
    record: the record.
    count: how many, at most.
    shuffle: in an order that depends only on the seed and the record's id,
      instead of by rank.
    seed: of the run.
  """
  ranked = record.ranked()
  ranks = np.arange(min(count, len(ranked)))
  if shuffle:
    entropy = [seed, _EVAL, *record.id.encode()]
    ranks = np.random.default_rng(entropy).permutation(ranks)
  return tuple((int(rank), ranked[rank]) for rank in ranks)


def check_fits(
  records: Sequence[Record], assembler: Assembler, num_active: int
) -> None:
  """Raises if a question with any of its answers is too long.

  At the start, rather than hours into the run when it is first drawn.

  Raises:
    errors.UserError: naming the record.
  """
  for record in records:
    for answer in record.answers:
      assembler(
        (),
        record.question,
        answer=answer,
        num_active=num_active,
        where=f'record {record.id}',
      )


def pick_bucket(
  buckets: Sequence[tuple[int, int]], examples: Sequence[Example]
) -> tuple[int, int]:
  """The first (prefix, suffix) length that holds all examples."""
  prefix = max(len(example.prefix) for example in examples)
  suffix = max(example.suffix_len for example in examples)
  for bucket in buckets:
    if prefix <= bucket[0] and suffix <= bucket[1]:
      return bucket
  raise errors.UserError(
    f'no bucket of {tuple(buckets)} holds a prefix of {prefix} and a suffix '
    f'of {suffix} tokens'
  )


def collate(
  examples: Sequence[Example],
  ids: Sequence[str],
  *,
  bucket: tuple[int, int],
  max_targets: int,
  vocab_size: int,
  batch_size: int,
) -> HostBatch:
  """Pads examples to one shape; rows beyond them have no targets.

  Args:
    examples: at most `batch_size`.
    ids: of their records.
    bucket: prefix and suffix length.
    max_targets: width of the targets.
    vocab_size: id of the first virtual token.
    batch_size: rows.

  Returns:
    The batch, int32.
  """
  prefix_size, suffix_size = bucket

  # numpy arrays, which a Batch may hold until it is put on the device.
  def padded(rows: Sequence[Sequence[int]], size: int) -> Any:
    out = np.zeros((batch_size, size), np.int32)
    for i, row in enumerate(rows):
      out[i, : len(row)] = row
    return out

  def column(values: Sequence[int]) -> Any:
    out = np.zeros(batch_size, np.int32)
    out[: len(values)] = values
    return out

  suffixes = [example.suffix(vocab_size) for example in examples]
  batch = Batch(
    prefix=padded([e.prefix for e in examples], prefix_size),
    prefix_len=column([len(e.prefix) for e in examples]),
    suffix=padded(suffixes, suffix_size),
    suffix_len=column([len(s) for s in suffixes]),
    # The last token of the prompt predicts the first of the answer.
    answer_start=column([e.num_active + len(e.prompt) - 1 for e in examples]),
    targets=padded([e.targets for e in examples], max_targets),
    target_len=column([len(e.targets) for e in examples]),
  )
  return HostBatch(
    batch=batch,
    ids=tuple(ids),
    passages_dropped=sum(e.passages_dropped for e in examples),
    passages_cut=sum(e.passages_cut for e in examples),
  )


class TrainBatches:
  """The endless training batches of a run.

  Args:
    records: the training set.
    data: passages, batch size, buckets.
    tokens: how k is drawn.
    assembler: makes the ids.
    vocab_size: id of the first virtual token.
    seed: of the run.
  """

  def __init__(
    self,
    records: Sequence[Record],
    data: config.Data,
    tokens: config.VirtualTokens,
    assembler: Assembler,
    vocab_size: int,
    seed: int,
  ):
    self._records = records
    self._data = data
    self._tokens = tokens
    self._assembler = assembler
    self._vocab_size = vocab_size
    self._seed = seed
    order = grain.MapDataset.range(len(records)).seed(seed).shuffle().repeat()
    size = data.batch_size * data.window_batches
    # Position p of the repeated order is in epoch p // N.
    self._windows = (
      order.map_with_index(lambda p, i: (int(p), int(i)))
      .batch(size, batch_fn=list)
      .map_with_index(self._window)
    )

  def _window(
    self, number: int, window: Sequence[tuple[int, int]]
  ) -> list[HostBatch]:
    drawn = []
    for position, index in window:
      record = self._records[index]
      choice = draw(
        record,
        self._data,
        self._tokens,
        self._seed,
        position // len(self._records),
        index,
      )
      example = self._assembler(
        choice.passages,
        record.question,
        answer=choice.answer,
        num_active=choice.num_active,
        where=f'record {record.id}',
      )
      drawn.append((record.id, example))
    rng = np.random.default_rng([self._seed, _WINDOW, number])
    # The bucket first: one long suffix must not lift eight short prefixes.
    drawn.sort(
      key=lambda item: (
        pick_bucket(self._data.buckets, [item[1]]),
        len(item[1].prefix),
      )
    )
    size = self._data.batch_size
    groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    return [self._collate(groups[i], rng) for i in rng.permutation(len(groups))]

  def _collate(
    self, group: Sequence[tuple[str, Example]], rng: np.random.Generator
  ) -> HostBatch:
    examples = [example for _, example in group]
    if self._tokens.draw == 'per_batch':
      k = int(rng.integers(1, self._tokens.num_virtual_tokens + 1))
      examples = [dataclasses.replace(e, num_active=k) for e in examples]
    return collate(
      examples,
      [name for name, _ in group],
      bucket=pick_bucket(self._data.buckets, examples),
      max_targets=self._data.max_answer_tokens,
      vocab_size=self._vocab_size,
      batch_size=self._data.batch_size,
    )

  @contextlib.contextmanager
  def starting_at(self, step: int) -> Iterator[Iterator[HostBatch]]:
    """Batches from a step on, made in the background while it is open."""
    window, skip = divmod(step, self._data.window_batches)
    windows = iter(
      self._windows[window:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
      )
    )

    def batches() -> Iterator[HostBatch]:
      start = skip
      for window_batches in windows:
        yield from window_batches[start:]
        start = 0

    try:
      yield batches()
    finally:
      close = getattr(windows, 'close', None)
      if close is not None:
        close()
