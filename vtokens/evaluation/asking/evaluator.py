"""Asks records in several prompt variants, in batches sorted by length."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import tqdm
from jaxtyping import Array, Float

from vtokens.data import pipeline
from vtokens.data.assemble import Example
from vtokens.data.batch import Batch
from vtokens.data.records import Record
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.prompter import (
  Prompter,
  PromptVariant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import (
  TrainedTokens,
  refusal_tokens,
  stack,
)
from vtokens.host import stopping, writers
from vtokens.method import padding, steps
from vtokens.method.trainable import Trainable, Values
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class AnsweredBatch:
  """Answers to some of the records.

  Attributes:
    index: numbers of the records.
    answers: one answer for each record, by name of the variant.
  """

  index: list[int]
  answers: dict[str, list[Answer]]


@functools.partial(jax.jit, static_argnames=('graph', 'trainable'))
def _nll(
  base: nnx.State[str, Any],
  trained: Values,
  cache: Cache,
  batch: Batch,
  *,
  graph: nnx.GraphDef[Decoder],
  trainable: Trainable,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  decoder = nnx.merge(graph, base)
  return steps.suffix_nll(trained, decoder, cache, batch, trainable=trainable)


class Evaluator:
  """Asks records in several prompt variants.

  Args:
    answerer: generates the answers of the frozen model.
    prompter: makes the examples.
    stop: a stop drops the batch that is being answered.
  """

  def __init__(
    self,
    answerer: Answerer,
    prompter: Prompter,
    stop: stopping.StopRequest | None = None,
  ):
    self._answerer = answerer
    self._base = answerer.base
    self._prompter = prompter
    self._stop = stop or stopping.StopRequest()

  def answers(
    self,
    records: Sequence[Record],
    variants: Sequence[PromptVariant],
    *,
    label: str,
  ) -> dict[str, list[Answer]]:
    """Answers to all records.

    Args:
      records: the questions.
      variants: the prompt variants.
      label: label of the progress bar.

    Returns:
      One answer for each record, in order, by name of the variant.
    """
    found: dict[str, list[Answer]] = {
      variant.name: [Answer('', 0, '')] * len(records) for variant in variants
    }
    with _progress(len(records), label) as bar:
      for batch in self.stream(records, variants):
        for name, answers in batch.answers.items():
          for i, answer in zip(batch.index, answers, strict=True):
            found[name][i] = answer
        bar.update(len(batch.index))
    report_cuts(label, itertools.chain.from_iterable(found.values()))
    return found

  def stream(
    self, records: Sequence[Record], variants: Sequence[PromptVariant]
  ) -> Iterator[AnsweredBatch]:
    """Answers to all records, batch by batch, longest first.

    Args:
      records: the questions.
      variants: the prompt variants.
    """
    tokens, first_ids = stack([v.tokens for v in variants], self._base.config)
    waiting: Callable[[], AnsweredBatch] | None = None
    for index in self._batches(records):
      # The device answers the batch before in the meantime.
      examples = [
        [self._prompter.example(records[i], variant) for variant in variants]
        for i in index
      ]
      if waiting is not None:
        yield self._stop.run(waiting)
      self._stop.check_together()
      answers = self._stop.run(
        functools.partial(
          self._answerer,
          examples,
          tokens,
          ids=[records[i].id for i in index],
          first_ids=first_ids,
          refusal_tokens=refusal_tokens([v.tokens for v in variants]),
        )
      )

      def wait(
        index: list[int] = index,
        answers: Callable[[], list[list[Answer]]] = answers,
      ) -> AnsweredBatch:
        columns = zip(*answers(), strict=True)
        return AnsweredBatch(
          index,
          {a.name: list(c) for a, c in zip(variants, columns, strict=True)},
        )

      waiting = wait

    if waiting is not None:
      yield self._stop.run(waiting)

  def validate(
    self, records: Sequence[Record], trained: TrainedTokens, num_active: int
  ) -> tuple[float, list[Answer]]:
    """Mean loss of the first answer of each record, and generated answers.

    The first answer of a question without one is the refusal.

    Returns:
      The loss in nats per target token, and one answer for each record.
    """
    variant = tokens_variant(trained, num_active)
    answers = [Answer('', 0, '')] * len(records)
    nll = tokens = 0.0
    with _progress(len(records), 'validation') as bar:
      for index in self._batches(records):
        self._stop.check_together()
        asked = functools.partial(
          self._validate_batch, [records[i] for i in index], variant, trained
        )
        # After a stop all processes save state at the same point, so that with
        # several of them a batch is not dropped.
        alone = jax.process_count() == 1
        part, found = self._stop.run(asked) if alone else asked()
        nll += part[0]
        tokens += part[1]
        for i, answer in zip(index, found, strict=True):
          answers[i] = answer
        bar.update(len(index))
    return nll / max(tokens, 1.0), answers

  def _validate_batch(
    self,
    records: Sequence[Record],
    variant: PromptVariant,
    trained: TrainedTokens,
  ) -> tuple[tuple[float, float], list[Answer]]:
    """Nats and target tokens of a batch, and its answers."""
    examples = [
      self._prompter.example(
        record, variant, self._prompter.first_answer(record)
      )
      for record in records
    ]
    cache = self._answerer.encode(examples)
    asked = [[dataclasses.replace(e, targets=e.targets[:0])] for e in examples]
    ids = [record.id for record in records]
    [tokens], first_ids = stack([trained], self._base.config)
    out = self._answerer.start(
      asked, cache, tokens, ids, first_ids, [trained.refusal_token]
    )
    nll, count = _nll(
      self._base.params,
      tokens.values,
      cache,
      self._collate(examples),
      graph=self._base.graph,
      trainable=tokens.trainable,
    )
    part = float(nll), float(count)
    return part, [answer for (answer,) in self._answerer.wait(out, asked)]

  def _batches(self, records: Sequence[Record]) -> Iterator[list[int]]:
    """Numbers of records, in batches of about equal length."""
    prompter = self._prompter
    # Longest first, so that too little memory shows at once.
    order = sorted(
      range(len(records)), key=lambda i: -prompter.length(records[i])
    )
    size = self._answerer.batch_size
    for start in range(0, len(order), size):
      yield order[start : start + size]

  def _collate(self, examples: Sequence[Example]) -> Batch:
    size = self._answerer.batch_size
    batch = pipeline.collate(
      [[[example]] for example in examples],
      shape=(
        padding.round_prefix(max(len(e.prefix) for e in examples)),
        padding.round_suffix(max(e.suffix_len for e in examples)),
      ),
      num_targets=self._prompter.max_targets,
      vocab_size=self._base.config.vocab_size,
      num_rows=size,
      spans=0 if examples[0].in_suffix else 1,
    )
    return self._answerer.put(batch)


def _progress(total: int, label: str) -> tqdm.tqdm:
  return writers.progress(total=total, desc=label, unit='question', leave=False)


def report_cuts(label: str, answers: Iterable[Answer]) -> None:
  """Prints how many passages did not fit, if any."""
  dropped = cut = 0
  for answer in answers:
    dropped += answer.passages_dropped
    cut += answer.passages_cut
  if dropped or cut:
    writers.say(
      f'{label}: passages that did not fit the longest prefix: {dropped} '
      f'dropped, {cut} cut'
    )
