"""Generates answers to examples, for every evaluation.

A question is asked in several ways, its branches. Branches with the same prefix
share one cache of it and are answered together; see `vtokens.method.generate`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Int

from vtokens import config
from vtokens.data.assemble import Example
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking import rows
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.endings import AnswerReader, tidy
from vtokens.evaluation.trained_tokens import BranchTokens
from vtokens.method import generate, padding
from vtokens.method.trainable import Trainable
from vtokens.models.cache import Cache
from vtokens.models.frozen_base import FrozenBase

# A pytree of arrays.
_Arrays = TypeVar('_Arrays')


class Answerer:
  """Answers batches of examples.

  An answer depends on its example alone: rows and branches do not attend to
  each other, and each row has its own random numbers.

  Args:
    base: the frozen model.
    mesh: the devices; the axes data and fsdp share the rows of a batch.
    decode: how answers are generated.
    seed: of sampling.

  Attributes:
    base: the model.
    batch_size: most examples at a time: `decode.batch_size`, rounded up to a
      multiple of the devices along data and fsdp.
  """

  def __init__(
    self,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    decode: config.Decode,
    seed: int,
  ):
    self.base = base
    self._mesh = mesh
    self._decode = decode
    self._seed = seed
    self._reader = AnswerReader(base)
    self._endings = self._reader.endings(at_newline=decode.stop_at_newline)
    self.batch_size = partitioning.round_up_rows(mesh, decode.batch_size)

  def __call__(
    self,
    examples: Sequence[Sequence[Example]],
    tokens: Sequence[BranchTokens],
    *,
    ids: Sequence[str],
    first_ids: Sequence[int] | None = None,
    refusal_tokens: Sequence[tuple[int, int] | None] = (),
  ) -> Callable[[], list[list[Answer]]]:
    """Starts answering a batch.

    Args:
      examples: the branches of each question, without targets; the same number
        for each of at most `batch_size` questions.
      tokens: virtual tokens of each branch, which uses k of them from its first
        one on. Branches with the same object are answered together.
      ids: ids of the questions; with the seed they decide what is sampled.
      first_ids: id of virtual token 0 of each branch; by default `vocab_size`.
      refusal_tokens: of each branch, place and id of the token that begins its
        refusal, which the bias of `decode` is for; None for a branch that was
        not trained to refuse. By default none was.

    Returns:
      A function that waits for the answers, by question and branch. Until it is
      called the device works while the caller prepares the next batch.
    """
    branches = len(examples[0])
    if first_ids is None:
      first_ids = [self.base.config.vocab_size] * branches
    started = []
    for shared in _same_prefix(examples):
      cache = self.encode([row[shared[0]] for row in examples])
      for group in _within_budget(examples, shared, tokens):
        part = [[row[b] for b in group] for row in examples]
        out = self.start(
          part,
          cache,
          tokens[group[0]],
          ids,
          [first_ids[b] for b in group],
          [refusal_tokens[b] for b in group] if refusal_tokens else (),
        )
        started.append((group, out))

    def wait() -> list[list[Answer]]:
      answers = [[Answer('', 0, '')] * branches for _ in examples]
      for group, out in started:
        part = [[row[b] for b in group] for row in examples]
        for answered, found in zip(answers, self.wait(out, part), strict=True):
          for branch, answer in zip(group, found, strict=True):
            answered[branch] = answer
      return answers

    return wait

  def encode(self, examples: Sequence[Example]) -> Cache:
    """The cache of the prefixes of a batch."""
    cache: Cache = generate.encode_prefix(
      self.base.params, *self.prefixes(examples), graph=self.base.graph
    )
    return cache

  def prefixes(
    self, examples: Sequence[Example]
  ) -> tuple[Int[Array, 'B P'], Int[Array, 'B P']]:
    """Ids and positions of the prefixes of a batch, padded."""
    longest = max(len(example.prefix) for example in examples)
    arrays: Any = rows.prefixes(
      [example.prefix for example in examples],
      self.batch_size,
      padding.round_prefix(longest),
    )
    ids, positions = self.put(arrays)
    return ids, positions

  def start(
    self,
    examples: Sequence[Sequence[Example]],
    cache: Cache,
    tokens: BranchTokens,
    ids: Sequence[str],
    first_ids: Sequence[int],
    refusal_tokens: Sequence[tuple[int, int] | None] = (),
    *,
    forced: int = 0,
  ) -> generate.Generated:
    """Starts answering branches that share one cache.

    Args:
      examples: the branches of each question.
      cache: see `encode`.
      tokens: virtual tokens of all these branches.
      ids: ids of the questions.
      first_ids: id of virtual token 0 of each branch.
      refusal_tokens: see `__call__`.
      forced: exact number of tokens to generate, for timing; 0 ends an answer
        at its end.
    """
    endings = self._endings
    if forced:
      never: Any = np.zeros_like(endings.is_end)
      endings = dataclasses.replace(endings, is_end=never, is_newline=never)
    out: generate.Generated = generate.generate(
      self.base.params,
      tokens.values,
      cache,
      self._suffixes(examples, first_ids, tokens.trainable),
      endings,
      self._sampling(ids) if self._decode.temperature else None,
      self._token_bias(refusal_tokens),
      graph=self.base.graph,
      max_new_tokens=forced or self._decode.max_new_tokens,
      trainable=tokens.trainable,
    )
    return out

  def wait(
    self,
    out: generate.Generated,
    examples: Sequence[Sequence[Example]],
  ) -> list[list[Answer]]:
    """Waits for the answers to the examples given to `start`."""
    ids, log_probs = map(distributed.fetch, (out.ids, out.log_probs))
    margins = np.full(ids.shape[:2], np.nan)
    if out.margins is not None:
      margins = distributed.fetch(out.margins)
    # The last rows may only fill up the batch.
    return [
      [
        self._answer(
          ids[r, branch].tolist(),
          log_probs[r, branch],
          float(margins[r, branch]),
          example,
        )
        for branch, example in enumerate(asked)
      ]
      for r, asked in enumerate(examples)
    ]

  def put(self, arrays: _Arrays) -> _Arrays:
    """Global arrays made from arrays of all rows."""
    return partitioning.shard_rows(arrays, self._mesh, self.batch_size)

  def _suffixes(
    self,
    examples: Sequence[Sequence[Example]],
    first_ids: Sequence[int],
    trainable: Trainable,
  ) -> generate.Suffixes:
    longest = max(sum(e.suffix_len for e in row) for row in examples)
    return self.put(
      rows.suffixes(
        examples,
        [first_ids] * len(examples),
        trainable,
        self.batch_size,
        padding.round_suffix(longest),
      )
    )

  def _sampling(self, ids: Sequence[str]) -> generate.Sampling:
    keys: Any = generate.sampling_keys(
      [f'{self._seed} {name}' for name in ids], self.batch_size
    )
    return generate.make_sampling(
      self.put(keys), self._decode.temperature, self._decode.top_p
    )

  def _token_bias(
    self, refusal_tokens: Sequence[tuple[int, int] | None]
  ) -> generate.TokenBias | None:
    """The bias of refusals; None if no branch was trained to refuse."""
    if all(i is None for i in refusal_tokens):
      return None
    bias = generate.make_token_bias(
      [refusal_tokens] * self.batch_size, self._decode.refusal_bias
    )
    return self.put(bias)

  def _answer(
    self,
    tokens: list[int],
    log_probs: np.ndarray,
    margin: float,
    example: Example,
  ) -> Answer:
    at_newline = self._decode.stop_at_newline
    ending = self._reader.find_end(tokens, at_newline=at_newline)
    text = self._reader.decode(tokens[: ending.shown])
    return Answer(
      text=tidy(text, at_newline=at_newline),
      num_tokens=ending.size,
      stop=ending.stop,
      shown=example.shown,
      passages_dropped=example.passages_dropped,
      passages_cut=example.passages_cut,
      confidence=float(log_probs[: ending.scored].mean(dtype=np.float64)),
      refusal_margin=margin if math.isfinite(margin) else None,
    )


def _same_prefix(examples: Sequence[Sequence[Example]]) -> list[list[int]]:
  """Numbers of the branches, grouped by equal prefixes in all rows."""
  groups: list[list[int]] = []
  for branch in range(len(examples[0])):
    for group in groups:
      if all(
        np.array_equal(row[group[0]].prefix, row[branch].prefix)
        for row in examples
      ):
        group.append(branch)
        break
    else:
      groups.append([branch])
  return groups


def _within_budget(
  examples: Sequence[Sequence[Example]],
  branches: Sequence[int],
  tokens: Sequence[BranchTokens],
) -> list[list[int]]:
  """Splits branches into groups that are answered together.

  The suffixes of a group fit `SUFFIX_BUDGET`, and it has one `BranchTokens`.
  """
  by_tokens: dict[int, list[int]] = {}
  for branch in branches:
    by_tokens.setdefault(id(tokens[branch]), []).append(branch)
  groups: list[list[int]] = []
  for alike in by_tokens.values():
    room = 0
    for branch in alike:
      size = max(row[branch].suffix_len for row in examples)
      if size > room:
        groups.append([])
        room = padding.SUFFIX_BUDGET
      groups[-1].append(branch)
      room -= size
  return groups
