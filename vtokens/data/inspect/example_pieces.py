"""The pieces of each example, cut out of the arrays that a step is given.

The plan of a batch says only where to cut and where passages come from.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Int

from vtokens import config
from vtokens.data import pipeline, prompt_encoder, token_cache
from vtokens.data.assemble import Assembler
from vtokens.data.batch import Batch
from vtokens.data.mixture import REFUSAL, Origin, TrainingMixture
from vtokens.data.planned import Planned, PlannedBatch
from vtokens.data.prompt_encoder import Ids
from vtokens.data.records import Record


@dataclasses.dataclass(frozen=True, slots=True)
class PassageView:
  """A passage that was chosen for an example.

  Attributes:
    rank: rank in its retriever's list, from 0.
    origin: its retriever, and whether it is gold or contains an answer.
    distractor_of: id of the other question that it was retrieved for; '' for
      a passage of the example's own question.
    kept: tokens of its body in the batch; 0 if the passage was dropped.
    lens: tokens of its uncut body, its end, and its end as the last passage.
  """

  rank: int
  origin: Origin
  distractor_of: str
  kept: int
  lens: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleView:
  """An example as it stands in a batch.

  Attributes:
    id: id of its record.
    dataset: dataset of its record.
    lengths: for each of its suffixes the tokens of prefix, suffix and answer
      (with eos; 0 if the answer is to be generated).
    passages: in the order shown, with the dropped ones.
    place: where it is in the batches.
    pieces: (label, ids) in the order that the model sees. Labels are start,
      passage, virtual, prompt and answer.
    accepted: accepted answers, if the answer is to be generated.
    refused: whether the answer is the refusal.
  """

  id: str
  dataset: str
  lengths: tuple[tuple[int, int, int], ...]
  passages: tuple[PassageView, ...]
  place: str = 'evaluation'
  pieces: tuple[tuple[str, Ids], ...] = ()
  accepted: tuple[str, ...] = ()
  refused: bool = False


def first_virtual_id(assembler: Assembler) -> int:
  """An id above those of text; only the weights tell the vocabulary size."""
  return assembler.encoder.tokenizer.max_id + 1


def of_plan(
  example: Planned, num_active: Sequence[int], mixture: TrainingMixture
) -> ExampleView:
  """A planned training example with `num_active` tokens, without its ids."""
  member, drawn = example.member, example.draw.passages
  return ExampleView(
    mixture.id(member),
    mixture.names[member.dataset],
    tuple(
      (example.prefix, example.text + example.in_suffix * k, example.targets)
      for k in num_active
    ),
    tuple(
      PassageView(
        passage.rank,
        mixture.origin(passage),
        '' if passage.member == member else mixture.id(passage.member),
        kept,
        mixture.passage_lens(passage),
      )
      for passage, kept in zip(drawn, example.kept, strict=True)
    ),
    refused=example.draw.answer == REFUSAL,
  )


def of_step(
  step: int,
  batch: Batch,
  planned: PlannedBatch,
  mixture: TrainingMixture,
  assembler: Assembler,
) -> Iterator[ExampleView]:
  """Yields the examples of a training batch, once for each suffix.

  Args:
    step: number of the step.
    batch: its batch, with all rows and with the id of `first_virtual_id`.
    planned: the plan of the batch.
    mixture: training data.
    assembler: assembler of the run.
  """
  for r, row in enumerate(planned.rows):
    suffixes = _suffixes(batch, r, first_virtual_id(assembler))
    for example in row:
      view = of_plan(example, planned.active(example), mixture)
      draws = len(view.lengths)
      for number, lengths in enumerate(view.lengths, 1):
        draw = f', draw {number} of {draws}' if draws > 1 else ''
        yield dataclasses.replace(
          view,
          lengths=(lengths,),
          place=f'step {step}, row {r + 1} of {len(planned.rows)}{draw}',
          pieces=_cut(*next(suffixes), view.passages, assembler),
        )


def of_record(
  record: Record,
  assembler: Assembler,
  settings: config.Eval,
  seed: int,
  *,
  with_answer: bool,
) -> ExampleView:
  """A record as evaluation with the most virtual tokens sees it.

  Args:
    record: validation or test record.
    assembler: assembler of the run.
    settings: how to choose passages, and numbers of virtual tokens.
    seed: seed of the run.
    with_answer: whether the first answer follows, as for the validation loss.

  Raises:
    errors.UserError: the record does not fit.
  """
  shown = pipeline.shown_passages(record, settings, seed)
  templates = assembler.encoder.templates
  first = prompt_encoder.first_answer(record.answers, templates)
  example = assembler(
    shown,
    record.question,
    answer=first if with_answer else None,
    has_it=token_cache.has_it(record, [passage for _, passage in shown])
    if record.answerable
    else (),
    num_active=max(settings.num_active),
    where=f'record {record.id}',
  )
  pieces = assembler.encoder.passages([passage for _, passage in shown])
  marks = token_cache.passage_marks(record, [passage for _, passage in shown])
  passages = tuple(
    PassageView(
      rank,
      Origin(settings.retriever or record.only_retriever(), *known),
      '',
      kept,
      ids.lens,
    )
    for (rank, _), ids, known, kept in zip(
      shown, pieces, marks, example.kept, strict=True
    )
  )
  with_virtual = dataclasses.replace(example, in_suffix=True)
  suffix = with_virtual.suffix(first_virtual_id(assembler))
  suffix = suffix[: len(suffix) - max(0, len(example.targets) - 1)]
  context = np.concatenate([example.prefix, suffix])
  return ExampleView(
    record.id,
    record.dataset,
    ((len(example.prefix), example.suffix_len, len(example.targets)),),
    passages,
    pieces=_cut(context, example.targets, passages, assembler),
    accepted=() if with_answer else record.answers or (first,),
    refused=not record.answerable,
  )


def _suffixes(batch: Batch, r: int, first_id: int) -> Iterator[tuple[Ids, Ids]]:
  """Yields ids before the answer, and targets, of each suffix of row r."""
  prefixes = _numbers(batch.prefix_segments, batch.prefix_positions, r)
  suffixes = _numbers(batch.suffix_segments, batch.suffix_positions, r)
  parents = suffixes if batch.prefix_segments is not None else suffixes * 0
  if batch.suffix_parents is not None:
    parents = np.asarray(batch.suffix_parents[r])
  index = np.asarray(batch.target_index[r])
  for number in range(suffixes.max() + 1):
    at = np.flatnonzero(suffixes == number)
    answered = np.isin(index, at)
    # The token at `last` predicts the first target.
    last = index[answered].min(initial=at[-1])
    prefix = np.asarray(batch.prefix[r])[prefixes == parents[at[0]]]
    suffix = np.asarray(batch.suffix[r])[at[at <= last]]
    targets = np.asarray(batch.targets[r])[answered]
    if batch.spans is not None:
      # The virtual tokens are not among the ids.
      start = int(batch.spans.starts[r, number]) - len(prefix)
      count = int(batch.spans.counts[r, number])
      suffix = np.insert(suffix, start, np.arange(first_id, first_id + count))
    yield np.concatenate([prefix, suffix]), targets


def _numbers(
  segments: Int[Array, 'R T'] | None, positions: Int[Array, 'R T'], r: int
) -> np.ndarray:
  """Number of the segment of each id in row r; -1 for padding."""
  if segments is not None:
    return np.asarray(segments[r])
  return np.where(np.asarray(positions[r]) >= 0, 0, -1)


def _cut(
  ids: Ids,
  targets: Ids,
  passages: Sequence[PassageView],
  assembler: Assembler,
) -> tuple[tuple[str, Ids], ...]:
  """Cuts an example into labelled pieces."""
  encoder = assembler.encoder
  shown = [passage for passage in passages if passage.kept]
  sizes = [len(encoder.before(assembler.in_chat(None)))]
  for number, passage in enumerate(shown, 1):
    _, end, last_end = passage.lens
    size = len(encoder.head(number)) + passage.kept
    sizes.append(size + (last_end if number == len(shown) else end))
  # The text is the same wherever the virtual tokens stand.
  is_text = ids < first_virtual_id(assembler)
  sizes.append(int(is_text.sum()) - sum(sizes))
  labels = ['start', *['passage'] * len(shown), 'prompt', 'answer', 'virtual']
  # Index of each id's piece in `labels`.
  pieces = np.full(len(ids), len(labels) - 1)
  pieces[is_text] = np.repeat(np.arange(len(sizes)), sizes)
  pieces = np.concatenate([pieces, np.full(len(targets), len(labels) - 2)])
  starts = np.flatnonzero(np.diff(pieces, prepend=-1))
  parts = np.split(np.concatenate([ids, targets]), starts[1:])
  return tuple(
    (labels[pieces[start]], part)
    for start, part in zip(starts, parts, strict=True)
  )
