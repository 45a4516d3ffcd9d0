"""What a batch's arrays hold, example by example.

Everything shown is cut out of the arrays that a step is given; what was drawn
only says where the cuts are and where each passage comes from.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler, Encoder, Ids, fit
from vtokens.data.containment import Matcher
from vtokens.data.mixture import Mixture, Origin, Shown
from vtokens.data.records import GOLD, Record
from vtokens.steps import Batch


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
    before: bos or the start of the chat turn.
    passages: in the order shown, with those that were dropped.
    virtual: ids of the virtual tokens.
    prompt: the question.
    targets: the answer and its end; empty if it is to be generated.
    answers: accepted ones, where the answer is to be generated.
  """

  id: str
  dataset: str
  place: str
  before: Ids
  passages: tuple[PassageView, ...]
  virtual: Ids
  prompt: Ids
  targets: Ids
  answers: tuple[str, ...] = ()

  @property
  def prefix_len(self) -> int:
    """Tokens before the virtual ones."""
    return len(self.before) + sum(len(p.ids) for p in self.passages)

  @property
  def suffix_len(self) -> int:
    """Tokens after the prefix; the last target is never an input."""
    return len(self.virtual) + len(self.prompt) + max(0, len(self.targets) - 1)


def of_step(
  step: int,
  host: pipeline.HostBatch,
  planned: pipeline.PlannedBatch,
  mixture: Mixture,
  assembler: Assembler,
  vocab_size: int,
) -> Iterator[ExampleView]:
  """The examples of a training batch, row by row.

  Args:
    step: of the batch.
    host: the batch, all of its rows.
    planned: the plan that it was made from.
    mixture: of the run.
    assembler: of the run.
    vocab_size: id of the first virtual token.
  """
  places = [(r, e) for r, row in enumerate(planned.rows) for e in row]
  parts = [
    cut for r in range(len(planned.rows)) for cut in _cuts(host.batch, r)
  ]
  for (r, example), name, (prefix, suffix, targets, start) in zip(
    places, host.ids, parts, strict=True
  ):
    k = int((suffix >= vocab_size).sum())
    drawn = example.draw.passages
    before, pieces = _cut_prefix(
      assembler,
      prefix,
      [mixture.passage_lens(passage) for passage in drawn],
      example.kept,
    )
    yield ExampleView(
      id=name,
      dataset=mixture.names[example.member.dataset],
      place=f'step {step}, row {r + 1} of {len(planned.rows)}',
      before=before,
      passages=tuple(
        PassageView(
          rank=passage.rank,
          origin=mixture.origin(passage),
          other=_other(mixture, passage, name),
          ids=ids,
          kept=kept,
          body=mixture.passage_lens(passage)[0],
        )
        for passage, kept, ids in zip(drawn, example.kept, pieces, strict=True)
      ),
      virtual=suffix[:k],
      # Its last token predicts the first of the answer.
      prompt=suffix[k : start + 1],
      targets=targets,
    )


def _other(mixture: Mixture, passage: Shown, name: str) -> str:
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
      [[example]],
      shape=(len(example.prefix), example.suffix_len),
      num_targets=len(example.targets),
      vocab_size=vocab_size,
      num_rows=1,
    )
    [(prefix, suffix, targets, start)] = _cuts(batch, 0)
    k = int((suffix >= vocab_size).sum())
    ids = encoder.passages([passage for _, passage in shown])
    lens = [(len(p.body), len(p.end), len(p.last_end)) for p in ids]
    kept = _fit(assembler, [rank for rank, _ in shown], lens)
    before, pieces = _cut_prefix(assembler, prefix, lens, kept)
    yield ExampleView(
      id=record.id,
      dataset=record.dataset,
      place='evaluation',
      before=before,
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
          shown, pieces, kept, lens, strict=True
        )
      ),
      virtual=suffix[:k],
      prompt=suffix[k : start + 1] if answers else suffix[k:],
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
  """Of each example in a row: prefix, suffix, targets, first target's index."""
  segments = batch.suffix_segments
  last = 0 if segments is None else int(np.max(segments[r]))
  for number in range(last + 1):
    prefix, suffix = (
      np.flatnonzero(
        (np.asarray(positions[r]) >= 0)
        & (True if of is None else np.asarray(of[r]) == number)
      )
      for positions, of in (
        (batch.prefix_positions, batch.prefix_segments),
        (batch.suffix_positions, batch.suffix_segments),
      )
    )
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
    assembler.max_prefix - len(encoder.before(assembler.in_chat(None))),
  )


def _heads(encoder: Encoder, count: int) -> list[int]:
  return [len(encoder.head(i + 1)) for i in range(count)]


def _cut_prefix(
  assembler: Assembler, prefix: Ids, lens: _Lens, kept: Sequence[int]
) -> tuple[Ids, list[Ids]]:
  """What comes before the passages, and each passage with heading and end."""
  encoder = assembler.encoder
  heads = _heads(encoder, len(lens))
  shown = [i for i, n in enumerate(kept) if n]
  sizes = [0] * len(lens)
  for at, i in enumerate(shown):
    _, end, last_end = lens[i]
    sizes[i] = heads[at] + kept[i] + (last_end if i == shown[-1] else end)
  before = len(encoder.before(assembler.in_chat(None)))
  assert before + sum(sizes) == len(prefix), (before, sizes, len(prefix))
  pieces = np.split(prefix[before:], np.cumsum(sizes)[:-1]) if sizes else []
  return prefix[:before], pieces
