"""Requests that are answered together, some tokens at a time."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vtokens.answering.growing_answer import GrowingAnswer
from vtokens.answering.prefix_cache import PrefixCache
from vtokens.answering.requests import NUM_TOP, Increment, Prepared
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking import rows
from vtokens.evaluation.asking.endings import AnswerReader
from vtokens.evaluation.trained_tokens import BranchTokens, refusal_tokens
from vtokens.method import generate, padding
from vtokens.models.cache import Cache
from vtokens.models.frozen_base import FrozenBase

# Room for new tokens is a multiple of it that is a power of two.
_ROOM = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
  """What all batches of an engine share.

  Attributes:
    base: the model.
    mesh: the devices.
    prefixes: encodes prefixes.
    reader: reads tokens.
    lock: held while the device runs a program.
  """

  base: FrozenBase
  mesh: jax.sharding.Mesh
  prefixes: PrefixCache
  reader: AnswerReader
  lock: contextlib.AbstractContextManager[Any]


class Batch:
  """Requests that are answered together.

  `Engine.start` makes it; its methods may not be called from several threads at
  once.

  Args:
    device: of the engine.
    numbers: number of each request, for its increments.
    prepared: the requests.
    tokens: virtual tokens of all of them.
    first_ids: id of virtual token 0 of each.

  Attributes:
    numbers: the same.
  """

  def __init__(
    self,
    device: Device,
    numbers: Sequence[int],
    prepared: Sequence[Prepared],
    tokens: BranchTokens,
    first_ids: Sequence[int],
  ):
    self.numbers = tuple(numbers)
    self._device = device
    self._prepared = prepared
    self._tokens = tokens
    self._first_ids = first_ids
    began = time.perf_counter()
    self._answers = {
      number: GrowingAnswer(number, one, device.reader, began)
      for number, one in zip(numbers, prepared, strict=True)
    }
    count = padding.coarse_rows(len(prepared))
    self._num_rows = partitioning.round_up_rows(device.mesh, count)
    most = max(one.max_new_tokens for one in prepared)
    self._most = _ROOM * padding.coarse_rows(-(-most // _ROOM))
    self._num_top = (
      NUM_TOP if any(one.request.num_logprobs for one in prepared) else 0
    )
    self._inputs: generate.Inputs | None = None
    self._progress: generate.Progress | None = None
    self._seen = 0

  @property
  def done(self) -> bool:
    """Whether all answers have ended."""
    return all(a.completion is not None for a in self._answers.values())

  def cancel(self, number: int) -> Increment | None:
    """Ends a request; None if it has ended already."""
    return self._answers[number].cancel()

  def advance(self, tokens: int) -> list[Increment]:
    """Generates tokens.

    Args:
      tokens: most new tokens of each answer. The first call also encodes the
        prompts.

    Returns:
      What is new, by request.
    """
    if self.done:
      return []
    with self._device.lock:
      progress = self._progress
      if progress is None:
        progress = self._begin()
      last = min(self._seen + tokens, self._most)
      if last > 1:
        progress = generate.advance(
          self._inputs,
          progress,
          self._put(self._ended()),
          np.int32(last),
          graph=self._device.base.graph,
          trainable=self._tokens.trainable,
        )
      self._progress = progress
      out = jax.tree.map(distributed.fetch, progress.out)
    found = self._read(out, last)
    if self.done:
      # The caches are large.
      self._progress = self._inputs = None
    return found

  def _begin(self) -> generate.Progress:
    """Encodes the prompts and generates the first tokens."""
    base, trainable = self._device.base, self._tokens.trainable
    examples = [one.example for one in self._prepared]
    cache: Cache = self._device.prefixes.caches(
      [example.prefix for example in examples], self._num_rows
    )
    suffixes = rows.suffixes(
      [[example] for example in examples],
      [[first] for first in self._first_ids],
      trainable,
      self._num_rows,
      padding.coarse_suffix(max(example.suffix_len for example in examples)),
    )
    self._inputs = generate.Inputs(
      base.params,
      self._tokens.values,
      cache,
      self._put(suffixes),
      self._device.reader.endings(at_newline=True),
      self._sampling(),
      self._put(self._limits()),
      self._token_bias(),
    )
    progress: generate.Progress = generate.begin(
      self._inputs,
      graph=base.graph,
      max_new_tokens=self._most,
      trainable=trainable,
      num_top=self._num_top,
    )
    return progress

  def _put(self, arrays: Any) -> Any:
    return partitioning.shard_rows(arrays, self._device.mesh, self._num_rows)

  def _of_rows(self, values: Sequence[Any], fill: Any, dtype: Any) -> Any:
    """An array with a value for each row."""
    padded = [*values, *[fill] * (self._num_rows - len(values))]
    return np.array(padded, dtype)

  def _limits(self) -> generate.RowLimits:
    return generate.RowLimits(
      self._of_rows([p.max_new_tokens for p in self._prepared], 1, np.int32),
      self._of_rows([p.at_newline for p in self._prepared], False, bool),
    )

  def _sampling(self) -> generate.Sampling | None:
    requests = [one.request for one in self._prepared]
    if not any(request.temperature for request in requests):
      return None
    names = [f'{request.seed} {request.id}' for request in requests]
    keys: Any = generate.sampling_keys(names, self._num_rows)
    sampling = generate.make_sampling(
      keys,
      self._of_rows([r.temperature for r in requests], 0, np.float32),
      self._of_rows([r.top_p for r in requests], 1, np.float32),
    )
    placed: generate.Sampling = self._put(sampling)
    return placed

  def _token_bias(self) -> generate.TokenBias | None:
    """The bias of refusals; None if no request has one."""
    if not any(one.refusal_bias for one in self._prepared):
      return None
    found = refusal_tokens([one.tokens for one in self._prepared])
    fill = [None] * (self._num_rows - len(found))
    bias = generate.make_token_bias(
      [[token] for token in [*found, *fill]],
      self._of_rows([p.refusal_bias for p in self._prepared], 0, np.float32),
    )
    placed: generate.TokenBias = self._put(bias)
    return placed

  def _ended(self) -> Any:
    """Which rows need no more tokens; array of shape [B], bool."""
    ended = [a.completion is not None for a in self._answers.values()]
    return self._of_rows(ended, True, bool)

  def _read(self, out: generate.Generated, last: int) -> list[Increment]:
    """Hands new tokens to the answers."""
    seen, self._seen = self._seen, last
    new = slice(seen, last)
    found = []
    for row, answer in enumerate(self._answers.values()):
      if answer.completion is not None:
        continue
      number = self._prepared[row].request.num_logprobs
      top: list[Any] = []
      if number and out.top_ids is not None and out.top_log_probs is not None:
        ids = out.top_ids[row, 0, new, :number].tolist()
        values = out.top_log_probs[row, 0, new, :number].tolist()
        top = [
          tuple(zip(*x, strict=True)) for x in zip(ids, values, strict=True)
        ]
      increment = answer.add(
        out.ids[row, 0, new].tolist(), out.log_probs[row, 0, new].tolist(), top
      )
      if increment is not None:
        found.append(increment)
    return found
