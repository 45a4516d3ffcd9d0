"""Answers and scores of a base, with and without virtual tokens."""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import numpy as np
import tqdm

from vtokens import config, errors, generate, metrics, steps, writers
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler, Example
from vtokens.data.records import Passage, Record
from vtokens.models.base import FrozenBase

# Lengths are padded to multiples of these, so that few shapes are compiled.
_PREFIX_ROUND, _SUFFIX_ROUND = 128, 32


@dataclasses.dataclass(frozen=True)
class Condition:
  """One way to ask.

  Attributes:
    name: unique among the conditions of a run.
    passages: whether they are shown.
    prompt: which template the question goes into.
    chat: whether all of it is wrapped in the chat template; None is what
      config.templates.chat says.
    num_active: virtual tokens (k); 0 for none.
  """

  name: str
  passages: bool = True
  prompt: str = 'prompt'
  chat: bool | None = False
  num_active: int = 0


UNTRAINED = {
  'closed_book': Condition('closed_book', passages=False),
  'concat': Condition('concat', prompt='concat'),
  'prompt': Condition('prompt', prompt='instruction'),
  'chat_prompt': Condition('chat_prompt', prompt='instruction', chat=True),
}


def tokens_condition(num_active: int) -> Condition:
  """Passages, the first `num_active` virtual tokens, question."""
  return Condition(f'tokens_k{num_active}', num_active=num_active, chat=None)


@functools.partial(jax.jit, static_argnames='graph')
def _nll(base, table, cache, batch, *, graph):
  return steps.suffix_nll(table, nnx.merge(graph, base), cache, batch)


class Evaluator:
  """Runs conditions over records in length-sorted static batches.

  The prefix of a batch is encoded once for all conditions that show the same.

  Args:
    base: the frozen model.
    assembler: makes the ids.
    settings: batch size, passages, lengths.
    seed: of the order of passages.
    check: called between batches; may raise to stop.
  """

  def __init__(
    self,
    base: FrozenBase,
    assembler: Assembler,
    settings: config.Eval,
    seed: int,
    check: Callable[[], None] = lambda: None,
  ):
    self._base = base
    self._assembler = assembler
    self._settings = settings
    self._seed = seed
    self._check = check
    self._known = frozenset(base.tokenizer.ids)
    self._newline, self._blank = _token_kinds(base)
    self._ends = np.zeros_like(self._newline)
    # Files may list ids that this model does not have.
    ends = [i for i in base.tokenizer.end_ids if i < len(self._ends)]
    self._ends[ends] = True
    if not settings.stop_at_newline:
      self._newline = np.zeros_like(self._newline)

  def answers(
    self,
    records: Sequence[Record],
    conditions: Sequence[Condition],
    table: np.ndarray,
    *,
    label: str,
  ) -> dict[str, list[str]]:
    """Greedy answers.

    Args:
      records: the questions.
      conditions: ways to ask them.
      table: the virtual tokens, `P D`; unused where k is 0.
      label: of the progress bar.

    Returns:
      Per condition, one prediction for each record, in order.
    """
    answers, _ = self._run(records, conditions, table, label, loss_of=None)
    return answers

  def check_fits(
    self,
    records: Sequence[Record],
    conditions: Sequence[Condition],
    *,
    answers: bool = False,
  ) -> None:
    """Raises if a question is too long for a condition, or one is impossible.

    At the start, rather than after the training.

    Args:
      records: the questions.
      conditions: ways to ask them.
      answers: whether the loss of their first answers will be wanted.

    Raises:
      errors.UserError: naming the record.
    """
    for condition in conditions:
      for record in records:
        self._assembler(
          (),
          record.question,
          answer=record.answers[0] if answers else None,
          num_active=condition.num_active,
          prompt=condition.prompt,
          chat=condition.chat,
          where=f'record {record.id}',
        )
        if condition.passages:
          pipeline.shown_passages(record, self._settings, self._seed)

  def validate(
    self, records: Sequence[Record], num_active: int, table: np.ndarray
  ) -> tuple[float, list[str]]:
    """Mean loss of the records' first answers, and greedy answers.

    Returns:
      Nats per target token, and one prediction for each record.
    """
    condition = tokens_condition(num_active)
    answers, loss = self._run(
      records, [condition], table, 'validation', loss_of=condition
    )
    return loss, answers[condition.name]

  def _run(self, records, conditions, table, label, loss_of):
    for condition in conditions:
      if condition.num_active > len(table):
        raise errors.UserError(
          f'{condition.name}: {condition.num_active} virtual tokens asked '
          f'for, but the table has {len(table)}'
        )
    predictions = {c.name: [''] * len(records) for c in conditions}
    nll = tokens = 0.0
    groups: dict[tuple[bool, bool], list[Condition]] = {}
    for condition in conditions:
      chat = self._assembler.in_chat(condition.chat)
      groups.setdefault((condition.passages, chat), []).append(condition)
    size = self._settings.batch_size
    total = len(groups) * len(records)
    with tqdm.tqdm(
      total=total, desc=label, unit='ex', leave=False, dynamic_ncols=True
    ) as bar:
      for group in groups.values():
        examples = {c.name: self._assemble(records, c) for c in group}
        first = examples[group[0].name]
        _report_cuts(first, f'{label}: {group[0].name}')
        # Longest first: memory that is too small shows at once.
        order = sorted(range(len(records)), key=lambda i: -len(first[i].prefix))
        for start in range(0, len(order), size):
          self._check()
          rows = order[start : start + size]
          cache = self._encode([first[i] for i in rows])
          for condition in group:
            texts = self._generate(
              [examples[condition.name][i] for i in rows], cache, table
            )
            for i, text in zip(rows, texts, strict=True):
              predictions[condition.name][i] = text
          if loss_of is not None:
            batch = self._collate(
              [self._with_answer(records[i], loss_of) for i in rows]
            )
            part = _nll(
              self._base.params, table, cache, batch, graph=self._base.graph
            )
            nll += float(part[0])
            tokens += float(part[1])
          bar.update(len(rows))
    return predictions, nll / max(tokens, 1.0)

  def _assemble(
    self, records: Sequence[Record], condition: Condition
  ) -> list[Example]:
    return [self._example(record, condition, None) for record in records]

  def _with_answer(self, record: Record, condition: Condition) -> Example:
    return self._example(record, condition, record.answers[0])

  def _example(
    self, record: Record, condition: Condition, answer: str | None
  ) -> Example:
    shown: tuple[tuple[int, Passage], ...] = ()
    if condition.passages:
      shown = pipeline.shown_passages(record, self._settings, self._seed)
    return self._assembler(
      shown,
      record.question,
      answer=answer,
      num_active=condition.num_active,
      prompt=condition.prompt,
      chat=condition.chat,
      where=f'record {record.id}',
    )

  def _collate(self, examples: Sequence[Example]) -> steps.Batch:
    prefix = max(len(example.prefix) for example in examples)
    suffix = max(example.suffix_len for example in examples)
    return pipeline.collate(
      [[example] for example in examples],
      shape=(
        _round_up(prefix, _PREFIX_ROUND),
        _round_up(suffix, _SUFFIX_ROUND),
      ),
      num_targets=self._assembler.max_targets,
      vocab_size=self._base.config.vocab_size,
      num_rows=self._settings.batch_size,
    )

  def _encode(self, examples: Sequence[Example]):
    batch = self._collate(examples)
    return generate.encode_prefix(
      self._base.params,
      batch.prefix,
      batch.prefix_positions,
      graph=self._base.graph,
    )

  def _generate(self, examples, cache, table) -> list[str]:
    batch = self._collate(examples)
    tokenizer = self._base.tokenizer
    ids = generate.greedy(
      self._base.params,
      table,
      cache,
      batch.suffix,
      batch.suffix_positions,
      np.int32(tokenizer.eos_id),
      self._ends,
      self._newline,
      self._blank,
      graph=self._base.graph,
      max_new_tokens=self._settings.max_new_tokens,
    )
    return [
      self._text(row) for row in jax.device_get(ids)[: len(examples)].tolist()
    ]

  def _text(self, ids: list[int]) -> str:
    ids = list(itertools.takewhile(lambda i: not self._ends[i], ids))
    # A padded embedding matrix has rows, so logits, of ids without a token.
    ids = [i for i in ids if i in self._known]
    text = self._base.tokenizer.decode(ids).strip()
    return text.split('\n')[0].strip() if self._newline.any() else text


def _token_kinds(base: FrozenBase) -> tuple[np.ndarray, np.ndarray]:
  """Which ids have a line break in their text, and which only white space."""
  newline = np.zeros(base.config.vocab_size, bool)
  blank = np.zeros(base.config.vocab_size, bool)
  for i in base.tokenizer.ids:
    text = base.tokenizer.decode([i])
    newline[i] = '\n' in text
    blank[i] = not text.strip()
  return newline, blank


def _round_up(size: int, multiple: int) -> int:
  """The next multiple; 1 for what is empty or only bos (no passages)."""
  return -(-size // multiple) * multiple if size > 1 else 1


def _report_cuts(examples: Sequence[Example], label: str) -> None:
  dropped = sum(example.passages_dropped for example in examples)
  cut = sum(example.passages_cut for example in examples)
  if dropped or cut:
    writers.say(
      f'{label}: passages that did not fit config.data.max_prefix_tokens: '
      f'{dropped} dropped, {cut} cut'
    )


def write_predictions(
  path: str | pathlib.Path,
  records: Sequence[Record],
  predictions: Sequence[str],
) -> None:
  """Writes one JSON object per question: id, prediction, answers, EM, F1."""
  lines = []
  for record, prediction in zip(records, predictions, strict=True):
    row = {
      'id': record.id,
      'dataset': record.dataset,
      'question': record.question,
      'prediction': prediction,
      'answers': record.answers,
      'em': metrics.exact_match(prediction, record.answers),
      'f1': metrics.token_f1(prediction, record.answers),
    }
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  writers.write_text(path, ''.join(lines))


def scores_of(
  records: Sequence[Record], predictions: Sequence[str]
) -> metrics.Scores:
  """EM and F1 of predictions."""
  return metrics.score(predictions, [record.answers for record in records])


def format_scores(title: str, scores: dict[str, dict[str, Any]]) -> str:
  """A small table: one line per condition, EM and F1 in percent."""
  width = max(map(len, [title, *scores]))
  lines = [f'{title:<{width}}     EM     F1      n']
  for name, row in scores.items():
    lines.append(
      f'{name:<{width}}  {row["em"]:5.1f}  {row["f1"]:5.1f}  {row["n"]:5d}'
    )
  return '\n'.join(lines)
