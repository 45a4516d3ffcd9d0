"""What a batch's arrays hold, example by example.

Everything shown is cut out of the arrays that a step is given; what was drawn
only says where the cuts are and where each passage comes from.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler, Ids, PromptEncoder, fit, suffix_len
from vtokens.data.batch import Batch
from vtokens.data.containment import Matcher
from vtokens.data.mixture import Origin, ShownPassage, TrainingMixture
from vtokens.data.records import GOLD, Record


@dataclasses.dataclass(frozen=True, slots=True)
class PassageView:
  """A passage of an example.

  Attributes:
    rank: in its retriever's list, from 0.
    origin: what is known of it.
    other: id of the question that it belongs to, if that is another one.
    ids: with heading and end, as in the batch; empty if it was dropped.
    kept: tokens of its body in the batch.
    body: tokens of its body before any cut.
  """

  rank: int
  origin: Origin
  other: str
  ids: Ids
  kept: int
  body: int


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleView:
  """An example as it stands in a batch.

  Attributes:
    id: of the record.
    dataset: of the record.
    place: where in the batches it is.
    prefix_len: tokens that are run forward only.
    before: bos or the start of the chat turn.
    passages: in the order shown, with those that were dropped.
    virtual: ids of the virtual tokens.
    virtual_at: tokens of the example before the virtual ones.
    prompt: the question, and in a chat the end of the user's turn.
    targets: the answer and its end; empty if it is to be generated.
    answers: accepted ones, where the answer is to be generated.
  """

  id: str
  dataset: str
  place: str
  prefix_len: int
  before: Ids
  passages: tuple[PassageView, ...]
  virtual: Ids
  virtual_at: int
  prompt: Ids
  targets: Ids
  answers: tuple[str, ...] = ()

  @property
  def prompt_at(self) -> int:
    """Tokens before the prompt, virtual ones apart."""
    return len(self.before) + sum(len(p.ids) for p in self.passages)

  @property
  def suffix_len(self) -> int:
    """Tokens after the prefix; the last target is never an input."""
    text = self.prompt_at + len(self.prompt) - self.prefix_len
    return suffix_len(len(self.virtual), text, len(self.targets))


def of_step(
  step: int,
  host: pipeline.HostBatch,
  planned: pipeline.PlannedBatch,
  mixture: TrainingMixture,
  assembler: Assembler,
  vocab_size: int,
) -> Iterator[ExampleView]:
  """The examples of a training batch, row by row, once for each suffix.

  Args:
    step: of the batch.
    host: the batch, all of its rows.
    planned: the plan that it was made from.
    mixture: of the run.
    assembler: of the run.
    vocab_size: id of the first virtual token.
  """
  examples = [(r, e) for r, row in enumerate(planned.rows) for e in row]
  places = []
  for (r, example), name in zip(examples, host.ids, strict=True):
    place = f'step {step}, row {r + 1} of {len(planned.rows)}'
    draws = len(planned.active(example))
    for number in range(1, draws + 1):
      which = f', draw {number} of {draws}' if draws > 1 else ''
      places.append((place + which, example, name))
  parts = [
    cut for r in range(len(planned.rows)) for cut in _cuts(host.batch, r)
  ]
  for (place, example, name), (prefix, suffix, targets, start) in zip(
    places, parts, strict=True
  ):
    drawn = example.draw.passages
    # The token at `start` predicts the first of the answer.
    cut = _cut(
      assembler,
      np.concatenate([prefix, suffix[: start + 1]]),
      [mixture.passage_lens(passage) for passage in drawn],
      example.kept,
      vocab_size,
    )
    yield ExampleView(
      id=name,
      dataset=mixture.names[example.member.dataset],
      place=place,
      prefix_len=len(prefix),
      before=cut.before,
      passages=tuple(
        PassageView(
          rank=passage.rank,
          origin=mixture.origin(passage),
          other=_other(mixture, passage, name),
          ids=ids,
          kept=kept,
          body=mixture.passage_lens(passage)[0],
        )
        for passage, kept, ids in zip(
          drawn, example.kept, cut.passages, strict=True
        )
      ),
      virtual=cut.virtual,
      virtual_at=cut.virtual_at,
      prompt=cut.prompt,
      targets=targets,
    )


def _other(mixture: TrainingMixture, passage: ShownPassage, name: str) -> str:
  owner = mixture.id(passage.member)
  return '' if owner == name else owner


def of_records(
  records: Sequence[Record],
  assembler: Assembler,
  settings: config.Eval,
  seed: int,
  vocab_size: int,
  *,
  answers: bool,
) -> Iterator[ExampleView]:
  """Records as evaluation with the most virtual tokens sees them.

  Args:
    records: validation or test records.
    assembler: of the run.
    settings: passages and virtual tokens.
    seed: of the run.
    vocab_size: id of the first virtual token.
    answers: whether their first answers are there too, as for the loss of a
      validation; or they are to be generated.

  Raises:
    errors.UserError: a record does not fit.
  """
  encoder = assembler.encoder
  for record in records:
    shown = pipeline.shown_passages(record, settings, seed)
    example = assembler(
      shown,
      record.question,
      answer=record.answers[0] if answers else None,
      num_active=max(settings.num_active),
      where=f'record {record.id}',
    )
    batch = pipeline.collate(
      [[[example]]],
      shape=(len(example.prefix), example.suffix_len),
      num_targets=len(example.targets),
      vocab_size=vocab_size,
      num_rows=1,
    )
    [(prefix, suffix, targets, start)] = _cuts(batch, 0)
    ids = encoder.passages([passage for _, passage in shown])
    lens = [(len(p.body), len(p.end), len(p.last_end)) for p in ids]
    kept = _fit(assembler, [rank for rank, _ in shown], lens)
    context = suffix[: start + 1] if answers else suffix
    cut = _cut(
      assembler, np.concatenate([prefix, context]), lens, kept, vocab_size
    )
    yield ExampleView(
      id=record.id,
      dataset=record.dataset,
      place='evaluation',
      prefix_len=len(prefix),
      before=cut.before,
      passages=tuple(
        PassageView(
          rank=rank,
          origin=_origin(record, settings.retriever, rank),
          other='',
          ids=piece,
          kept=n,
          body=body,
        )
        for (rank, _), piece, n, (body, _, _) in zip(
          shown, cut.passages, kept, lens, strict=True
        )
      ),
      virtual=cut.virtual,
      virtual_at=cut.virtual_at,
      prompt=cut.prompt,
      targets=targets,
      answers=() if answers else record.answers,
    )


def _origin(record: Record, retriever: str, rank: int) -> Origin:
  passage = record.ranked(retriever)[rank]
  golds = record.passages.get(GOLD, ())
  names = [name for name in record.passages if name != GOLD] or [GOLD]
  return Origin(
    retriever=retriever or names[0],
    has_answer=Matcher(record.answers).contains(passage.text),
    is_gold=any(
      passage.text == gold.text or bool(gold.id and passage.id == gold.id)
      for gold in golds
    ),
  )


def _cuts(batch: Batch, r: int) -> Iterator[tuple[Ids, Ids, Ids, int]]:
  """Of each suffix in a row: prefix, suffix, targets, first target's index."""
  segments, parents = batch.suffix_segments, batch.suffix_parents

  def slots(positions: Any, of: Any, number: int) -> np.ndarray:
    real = np.asarray(positions[r]) >= 0
    return np.flatnonzero(
      real if of is None else real & (np.asarray(of[r]) == number)
    )

  last = 0 if segments is None else int(np.max(segments[r]))
  for number in range(last + 1):
    suffix = slots(batch.suffix_positions, segments, number)
    parent = number if parents is None else int(parents[r][suffix[0]])
    prefix = slots(batch.prefix_positions, batch.prefix_segments, parent)
    index = np.asarray(batch.target_index[r])
    targets = np.flatnonzero(np.isin(index, suffix))
    start = int(index[targets[0]] - suffix[0]) if len(targets) else -1
    yield (
      np.asarray(batch.prefix[r])[prefix],
      np.asarray(batch.suffix[r])[suffix],
      np.asarray(batch.targets[r])[targets],
      start,
    )


_Lens = Sequence[tuple[int, int, int]]


def _fit(assembler: Assembler, ranks: Sequence[int], lens: _Lens) -> list[int]:
  encoder = assembler.encoder
  return fit(
    ranks,
    _heads(encoder, len(lens)),
    [body for body, _, _ in lens],
    [end for _, end, _ in lens],
    [last_end for _, _, last_end in lens],
    assembler.limits.prefix - len(encoder.before(assembler.in_chat(None))),
  )


def _heads(encoder: PromptEncoder, count: int) -> list[int]:
  return [len(encoder.head(i + 1)) for i in range(count)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
  """The pieces of an example up to its answer; see `ExampleView`."""

  before: Ids
  passages: list[Ids]
  virtual: Ids
  virtual_at: int
  prompt: Ids


def _cut(
  assembler: Assembler,
  ids: Ids,
  lens: _Lens,
  kept: Sequence[int],
  vocab_size: int,
) -> _Cut:
  """Cuts an example up, without its answer."""
  is_virtual = ids >= vocab_size
  # What is not virtual is the same wherever the virtual tokens stand.
  text = ids[~is_virtual]
  encoder = assembler.encoder
  heads = _heads(encoder, len(lens))
  shown = [i for i, n in enumerate(kept) if n]
  sizes = [0] * len(lens)
  for at, i in enumerate(shown):
    _, end, last_end = lens[i]
    sizes[i] = heads[at] + kept[i] + (last_end if i == shown[-1] else end)
  before = len(encoder.before(assembler.in_chat(None)))
  stops = np.cumsum([before, *sizes])
  before_ids, *passages, prompt = np.split(text, stops)
  return _Cut(
    before=before_ids,
    passages=passages,
    virtual=ids[is_virtual],
    virtual_at=int(np.argmax(is_virtual)),
    prompt=prompt,
  )
