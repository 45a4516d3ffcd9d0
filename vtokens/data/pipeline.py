"""Training batches. Each batch is a pure function of (seed, step).

token sets --mixture.py: order, draws--> window of `window_batches` batches
  --batching.py: rows, batches, shapes, from lengths alone--> plan
  --assemble.py: ids of this process's rows--> Batch
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from vtokens import config
from vtokens.data import assemble, batching, teaching
from vtokens.data import batch as batch_lib
from vtokens.data.assemble import Assembler, Example
from vtokens.data.batch import Batch
from vtokens.data.mixture import ShownPassage, TrainingMixture
from vtokens.data.planned import Planned, PlannedBatch
from vtokens.data.records import Passage, Record
from vtokens.host import errors

# Numbers of random streams under one seed; mixture.py has others.
_WINDOW, _EVAL = 3, 4
# At most so many examples, of so many epochs, decide the shapes.
_SAMPLE, _SAMPLE_EPOCHS = 8192, 4
# The most shapes of a teacher's own pass.
_TEACHER_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class HostBatch:
  """A batch and its counts. Only `batch` is of this process's rows alone.

  Attributes:
    batch: numpy arrays of this process's rows.
    ids: ids of the batch's records.
    lengths: lengths of each suffix; see `flops.train_flops`.
    real_tokens: number of tokens without padding.
    computed_tokens: number of tokens with padding.
    passages_dropped: number of passages that did not fit at all.
    passages_cut: number of passages that were shortened.
    teacher_lengths: lengths of each suffix that a teacher's own pass has.
  """

  batch: Batch
  ids: tuple[str, ...]
  lengths: tuple[tuple[int, int, int, int], ...]
  real_tokens: int
  computed_tokens: int
  passages_dropped: int
  passages_cut: int
  teacher_lengths: tuple[tuple[int, int, int, int], ...] = ()


def shown_passages(
  record: Record, settings: config.Shown, seed: int
) -> tuple[tuple[int, Passage], ...]:
  """The passages that evaluation shows, with their ranks.

  Args:
    record: the record.
    settings: number of passages, retriever and order.
    seed: seed of the order, which depends only on it and the record's id.

  Raises:
    records.RecordError: the record has several retrievers and none is named.
  """
  if not settings.num_passages:
    return ()
  ranked = record.ranked(settings.retriever)
  ranks = np.arange(min(settings.num_passages, len(ranked)))
  if settings.shuffle_passages:
    entropy = [seed, _EVAL, *record.id.encode()]
    ranks = np.random.default_rng(entropy).permutation(ranks)
  return tuple((int(rank), ranked[rank]) for rank in ranks)


def collate(
  rows: Sequence[Sequence[Sequence[Example]]],
  *,
  shape: tuple[int, int],
  num_targets: int,
  vocab_size: int,
  num_rows: int,
  per_row: int = 1,
  draws: int = 1,
  spans: int = 0,
) -> Batch:
  """Writes examples into numpy arrays of one shape.

  Args:
    rows: for each row and each prefix in it, the examples that share the
      prefix, one for each suffix. There are at most `num_rows` rows; the rest
      is padding.
    shape: prefix and suffix length of a row.
    num_targets: largest number of targets of a row.
    vocab_size: id of the first virtual token.
    num_rows: number of rows of the batch.
    per_row: the most prefixes of a row; several need segments.
    draws: the most suffixes that a prefix can have.
    spans: the most suffixes of a row if virtual tokens are not in them; else 0.
  """

  def empty(size: int, fill: int) -> Any:
    return np.full((num_rows, size), fill, np.int32)

  prefix, prefix_at = empty(shape[0], 0), empty(shape[0], -1)
  suffix, suffix_at = empty(shape[1], 0), empty(shape[1], -1)
  prefix_segments, suffix_segments = empty(shape[0], -1), empty(shape[1], -1)
  suffix_parents = empty(shape[1], -1)
  targets, target_at = empty(num_targets, 0), empty(num_targets, -1)
  starts, counts = empty(spans, 0), empty(spans, 0)
  for r, row in enumerate(rows):
    p = s = t = suffixes = 0
    for number, examples in enumerate(row):
      p_stop = p + len(examples[0].prefix)
      prefix[r, p:p_stop] = examples[0].prefix
      prefix_at[r, p:p_stop] = np.arange(p_stop - p)
      prefix_segments[r, p:p_stop] = number
      for example in examples:
        ids = example.suffix(vocab_size)
        s_stop, t_stop = s + len(ids), t + len(example.targets)
        suffix[r, s:s_stop] = ids
        suffix_at[r, s:s_stop] = example.suffix_positions()
        suffix_segments[r, s:s_stop] = suffixes
        suffix_parents[r, s:s_stop] = number
        targets[r, t:t_stop] = example.targets
        # The token before the answer predicts its first token. The answer's
        # last token is never an input.
        first = s_stop - len(example.targets)
        target_at[r, t:t_stop] = np.arange(first, first + t_stop - t)
        if spans:
          starts[r, suffixes] = example.first_position
          counts[r, suffixes] = example.num_active
        s, t, suffixes = s_stop, t_stop, suffixes + 1
      p = p_stop
  return batch_lib.make(
    per_row=per_row,
    draws=draws,
    prefix=prefix,
    prefix_positions=prefix_at,
    prefix_segments=prefix_segments,
    suffix=suffix,
    suffix_positions=suffix_at,
    suffix_segments=suffix_segments,
    suffix_parents=suffix_parents,
    targets=targets,
    target_index=target_at,
    spans=batch_lib.Spans(starts, counts) if spans else None,
  )


class TrainBatches:
  """The endless training batches of a run.

  Args:
    mixture: the training examples.
    data: batch size, rows, shapes.
    tokens: how k is drawn.
    assembler: assembler of the run.
    vocab_size: id of the first virtual token.
    seed: seed of the run.
    local_rows: rows of each batch that this process makes; None for all.
    distill: whether there is a teacher.
    teacher: what it sees; None if it is the last draw.

  Attributes:
    mixture: the training examples.
    encoder: encoder of the run's prompts.
    batch_rows: number of rows of a whole batch.
    shapes: (prefix, suffix) lengths that a batch may have.
    teacher_shapes: the same of a teacher's own pass; empty without one. The
      prefix is 0 if the passages are the student's.

  Raises:
    errors.UserError: a teacher sees gold passages alone, and the data show
      none.
  """

  def __init__(
    self,
    mixture: TrainingMixture,
    data: config.Data,
    tokens: config.VirtualTokens,
    assembler: Assembler,
    vocab_size: int,
    seed: int,
    local_rows: np.ndarray | None = None,
    distill: config.Distill | None = None,
    teacher: teaching.Teacher | None = None,
  ):
    self.mixture = mixture
    self._data = data
    self._tokens = tokens
    self._assembler = assembler
    self.encoder = assembler.encoder
    self._chat = assembler.in_chat(None)
    self._before = len(self.encoder.before(self._chat))
    # Passages vary most in length; with `first` they are in the suffix.
    self._by_suffix = assembler.position == 'first'
    most = max(1, data.passages.number[1])
    for policy in data.mixture.passages.values():
      most = max(most, policy.number[1])
    self._heads = [len(self.encoder.head(i + 1)) for i in range(most)]
    self._vocab_size = vocab_size
    self._seed = seed
    self._taught = distill is not None and distill.weight > 0
    self.batch_rows = data.batch_size // data.examples_per_row
    if local_rows is None:
      local_rows = np.arange(self.batch_rows)
    self._local_rows = local_rows
    self._windows = mixture.order().batch(
      data.batch_size * data.window_batches, batch_fn=list
    )
    self._teacher = teacher
    self.shapes = tuple(data.shapes) or self._choose_shapes()
    self.teacher_shapes = self._choose_teacher_shapes() if teacher else ()

  def _sample(self) -> Iterator[list[Planned]]:
    """Yields the examples of the first windows, to choose shapes from."""
    size = self._data.batch_size * self._data.window_batches
    sample = min(_SAMPLE, _SAMPLE_EPOCHS * sum(self.mixture.sizes))
    for number in range(max(2, sample // size)):
      yield [self._plan(*place) for place in self._windows[number]]

  def _choose_shapes(self) -> tuple[batching.Shape, ...]:
    plans = [self._form_rows(examples)[1:] for examples in self._sample()]
    per_row = self._data.examples_per_row
    draws = self._tokens.draws_per_example
    prefix, suffix = self._assembler.longest
    return batching.choose_shapes(
      np.concatenate([prefix for prefix, _ in plans]),
      np.concatenate([suffix for _, suffix in plans]),
      (max(1, per_row * prefix), per_row * draws * suffix),
      self._data.num_shapes,
    )

  def _choose_teacher_shapes(self) -> tuple[batching.Shape, ...]:
    assert self._teacher is not None
    prefixes, suffixes = [], []
    examples = taught = 0
    for planned in self._sample():
      rows, *_ = self._form_rows(planned)
      lengths = np.array([e.teacher or (0, 0, 0) for e in planned])
      prefixes.append(lengths[rows, 0].sum(axis=1))
      suffixes.append(lengths[rows, 1].sum(axis=1))
      examples += len(planned)
      taught += sum(example.teacher is not None for example in planned)
    if not taught:
      raise errors.UserError(
        'config.train.distill.passages: none of the first '
        f'{examples:,} examples shows a gold passage; expected passages that '
        'are marked or have an answer, or config.train.distill.passages=shown'
      )
    per_row = self._data.examples_per_row
    prefix, suffix = self._assembler.longest
    # The student's suffix has room for all n tokens, whatever k is.
    suffix += self._teacher.num_inputs - self._tokens.num_virtual_tokens
    shapes = batching.choose_shapes(
      np.concatenate(prefixes),
      np.concatenate(suffixes),
      (max(1, per_row * prefix), per_row * suffix),
      # Each is compiled with each of the student's.
      min(_TEACHER_SHAPES, self._data.num_shapes),
    )
    if self._teacher.gold:
      return shapes
    return tuple(sorted({(0, suffix) for _, suffix in shapes}))

  def _plan(self, dataset: int, epoch: int, index: int) -> Planned:
    """Draws an example and computes its lengths without reading ids."""
    mixture = self.mixture
    member = mixture.member(dataset, index)
    draw = mixture.draw(dataset, epoch, index)
    prefix, moved, kept, cut = self._fit(draw.passages)
    draw = dataclasses.replace(draw, answer=mixture.target(member, draw, kept))
    source = mixture.source(member, draw, kept)
    answer = mixture.answer_len(member, draw.answer)
    answer += self.encoder.citation_len(source, chat=self._chat)
    question = assemble.suffix_len(0, mixture.prompt_len(member), answer)
    planned = Planned(
      member=member,
      draw=draw,
      prefix=prefix,
      text=question + moved,
      targets=answer,
      kept=kept,
      cut=cut,
      in_suffix=self._assembler.in_suffix,
      source=source,
    )
    if self._teacher is None:
      return planned
    seen = self._seen_by_teacher(planned)
    if seen is None:
      return planned
    prefix, moved, *_ = self._fit(seen)
    suffix = question + moved + self._teacher.num_inputs
    outside = self._teacher.num_tokens - self._teacher.num_inputs
    return dataclasses.replace(planned, teacher=(prefix, suffix, outside))

  def _fit(
    self, passages: Sequence[ShownPassage]
  ) -> tuple[int, int, tuple[int, ...], int]:
    """Fits passages into the prefix.

    Returns:
      Length of the prefix; length of passages that are in the suffix instead;
      tokens kept of each passage's body; number of passages shortened.
    """
    lens = [self.mixture.passage_lens(passage) for passage in passages]
    bodies = [body for body, _, _ in lens]
    ends, last_ends = [end for _, end, _ in lens], [last for _, _, last in lens]
    kept = assemble.fit(
      [passage.rank for passage in passages],
      self._heads,
      bodies,
      ends,
      last_ends,
      self._assembler.limits.prefix - self._before,
    )
    prefix = assemble.prefix_len(
      self._before, self._heads, kept, ends, last_ends
    )
    moved = prefix - self._before if self._by_suffix else 0
    cut = sum(0 < n < body for n, body in zip(kept, bodies, strict=True))
    return prefix - moved, moved, tuple(kept), cut

  def _seen_by_teacher(
    self, planned: Planned
  ) -> tuple[ShownPassage, ...] | None:
    """The passages that the teacher sees; None if there is no teacher."""
    passages = planned.draw.passages
    if self._teacher is None or not self._teacher.gold:
      return passages
    gold = tuple(
      passage
      for passage, kept in zip(passages, planned.kept, strict=True)
      if kept and self.mixture.is_gold(planned.member, passage)
    )
    return gold or None

  def _form_rows(
    self, examples: Sequence[Planned]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of each row's examples; prefix and suffix length of each row."""
    prefix = np.array([example.prefix for example in examples])
    suffix = np.array([example.suffix for example in examples])
    rows = batching.form_rows(
      suffix if self._by_suffix else prefix, self._data.examples_per_row
    )
    return rows, prefix[rows].sum(axis=1), suffix[rows].sum(axis=1)

  def plan(self, window: int) -> list[PlannedBatch]:
    """Plans the batches of a window, in the order of their steps."""
    return self._window(window, self._windows[window])

  def _window(
    self, number: int, places: Sequence[tuple[int, int, int]]
  ) -> list[PlannedBatch]:
    examples = [self._plan(*place) for place in places]
    rows, prefix, suffix = self._form_rows(examples)
    groups = batching.group_rows(
      prefix,
      suffix,
      self.shapes,
      self.batch_rows,
      by_suffix=self._by_suffix,
    )
    rng = np.random.default_rng([self._seed, _WINDOW, number])
    order = rng.permutation(len(groups))
    planned = []
    for group, shape in (groups[i] for i in order):
      k = None
      if self._tokens.draw == 'per_batch':
        high = self._tokens.num_virtual_tokens + 1
        draws = range(self._tokens.draws_per_example)
        k = tuple(int(rng.integers(1, high)) for _ in draws)
        if self._tokens.always_all:
          k = (*k[:-1], self._tokens.num_virtual_tokens)
      of_rows = [[examples[i] for i in rows[r]] for r in group]
      planned.append(
        PlannedBatch(of_rows, shape, k, self._teacher_shape(of_rows))
      )
    return planned

  def _teacher_shape(
    self, rows: Sequence[Sequence[Planned]]
  ) -> batching.Shape | None:
    """The first shape that holds the teacher's rows."""
    if self._teacher is None:
      return None
    lengths = np.array([[e.teacher or (0, 0, 0) for e in row] for row in rows])
    most = lengths.sum(axis=1).max(axis=0)
    for prefix, suffix in self.teacher_shapes:
      if suffix >= most[1] and (not self._teacher.gold or prefix >= most[0]):
        return prefix, suffix
    raise AssertionError(f'no shape holds a row of {most} tokens')

  def _make(self, planned: PlannedBatch) -> HostBatch:
    """Reads the ids of a batch's local rows."""
    everything = [example for row in planned.rows for example in row]
    data, draws = self._data, self._tokens.draws_per_example
    suffixes = data.examples_per_row * draws
    num_targets = suffixes * data.max_answer_tokens
    rows = [
      [self._read(e, planned.active(e)) for e in planned.rows[r]]
      for r in self._local_rows
    ]
    batch = collate(
      rows,
      shape=planned.shape,
      num_targets=num_targets,
      vocab_size=self._vocab_size,
      num_rows=len(rows),
      per_row=data.examples_per_row,
      draws=draws,
      spans=0 if self._assembler.in_suffix else suffixes,
    )
    index: Any
    if self._teacher is not None:
      teachers = [
        [self._read_teacher(e) for e in planned.rows[r]]
        for r in self._local_rows
      ]
      index = teaching.by_teacher(rows, teachers, num_targets)
      batch = dataclasses.replace(
        batch,
        teacher_index=index,
        teacher=self._collate_teacher(teachers, planned),
      )
    elif self._taught:
      index = teaching.by_last_draw(rows, num_targets)
      batch = dataclasses.replace(batch, teacher_index=index)
    return HostBatch(
      batch=batch,
      ids=tuple(self.mixture.id(e.member) for e in everything),
      lengths=planned.lengths,
      real_tokens=planned.real_tokens,
      computed_tokens=self.batch_rows
      * sum((*planned.shape, *(planned.teacher_shape or ()))),
      passages_dropped=sum(e.dropped for e in everything),
      passages_cut=sum(e.cut for e in everything),
      teacher_lengths=planned.teacher_lengths,
    )

  def _collate_teacher(
    self, teachers: Sequence[Sequence[Example | None]], planned: PlannedBatch
  ) -> Batch:
    """Writes the teacher's examples into arrays of the teacher's shape."""
    assert self._teacher is not None
    assert planned.teacher_shape is not None
    prefix, suffix = planned.teacher_shape
    per_row = self._data.examples_per_row
    batch = collate(
      [[[e] for e in row if e is not None] for row in teachers],
      shape=(prefix or planned.shape[0], suffix),
      num_targets=per_row * self._data.max_answer_tokens,
      vocab_size=self._vocab_size,
      num_rows=len(teachers),
      per_row=per_row,
      # Student and teacher may share prefixes, whose suffixes are then numbered
      # alike.
      spans=0 if self._teacher.in_suffix else per_row,
    )
    return batch if prefix else batch_lib.without_prefix(batch)

  def _read_teacher(self, planned: Planned) -> Example | None:
    """Reads the teacher's example, if there is one."""
    seen = self._seen_by_teacher(planned)
    if self._teacher is None or seen is None:
      return None
    return self._teacher.example(self._join(planned, seen))

  def _read(self, planned: Planned, num_active: Sequence[int]) -> list[Example]:
    """Reads an example; returns it once for each number of virtual tokens."""
    example = self._join(planned, planned.draw.passages)
    return [dataclasses.replace(example, num_active=k) for k in num_active]

  def _join(
    self, planned: Planned, passages: Sequence[ShownPassage]
  ) -> Example:
    """Reads an example with these passages, without virtual tokens."""
    mixture = self.mixture
    answer = mixture.answer(planned.member, planned.draw.answer)
    return assemble.join(
      self.encoder,
      [(passage.rank, mixture.passage(passage)) for passage in passages],
      mixture.prompt(planned.member),
      self.encoder.cite(answer, planned.source, chat=self._chat),
      num_active=0,
      chat=self._chat,
      max_prefix=self._assembler.limits.prefix,
      position=self._assembler.position,
      in_suffix=self._assembler.in_suffix,
    )

  @contextlib.contextmanager
  def starting_at(self, step: int) -> Iterator[Iterator[HostBatch]]:
    """Yields the batches from a step on, made in the background."""
    first, skip = divmod(step, self._data.window_batches)
    windows = self._windows.map_with_index(self._window)[first:]
    # A thread of this process makes windows ahead, unless worker processes do.
    stream = windows.map(
      lambda window: [self._make(planned) for planned in window]
    ).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if self._data.workers:
      stream = stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._data.workers)
      )
    iterator = iter(stream)
    try:
      yield itertools.islice(
        itertools.chain.from_iterable(iterator), skip, None
      )
    finally:
      close = getattr(iterator, 'close', None)
      if close is not None:
        close()
