"""Reasoned answers (gsm8k): generated until the next question would begin.

Generation goes in rounds of some tokens. After each, questions whose answer is
complete leave, so that the others share fuller batches, and what ends an answer
may be any text, however it is cut into tokens.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vtokens.data.assemble import Ids
from vtokens.devices import distributed, partitioning
from vtokens.evaluation import choices, task_prompts, tasks
from vtokens.evaluation.asking import answering
from vtokens.host import stopping, writers
from vtokens.method import generate
from vtokens.models.frozen_base import FrozenBase
from vtokens.models.kv_cache import KVCache

# New tokens of a round.
_ROUND = 64
_SUFFIX_ROUND = 64
_KEY_AXES = ('layers', 'batch', 'kv_heads', 'head', 'slots')
_VALUE_AXES = ('layers', 'batch', 'kv_heads', 'slots', 'head')


@dataclasses.dataclass(frozen=True, slots=True)
class Continuation:
  """What a model wrote after a prompt.

  Attributes:
    text: without what ended it.
    num_tokens: generated, with the beginning of a next question, without a
      token that means the end.
    stop: what ended it: end (a token that means it), question (the next one
      began), or length.
  """

  text: str
  num_tokens: int
  stop: str


def continue_prompts(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  prompt_ids: Sequence[Ids],
  *,
  max_new_tokens: int,
  batch_size: int,
  label: str,
  stop: stopping.StopRequest | None = None,
) -> list[Continuation]:
  """Greedy continuations, which do not depend on the batch.

  Args:
    base: the frozen model.
    mesh: the devices; rows of a batch lie over data and fsdp.
    prompt_ids: ids of each prompt, bos included. What all of them begin with
      is encoded once.
    max_new_tokens: longest continuation.
    batch_size: of prompts at a time; see `choices.num_rows`.
    label: of the progress bar.
    stop: drops the batch that is being continued.
  """
  stop = stop or stopping.StopRequest()
  known = frozenset(base.tokenizer.ids)

  def decode(ids: Sequence[int]) -> str:
    # A padded embedding matrix has rows, so logits, of ids without a token.
    return base.tokenizer.decode([i for i in ids if i in known])

  vocab_size = base.config.vocab_size
  ends: Any = np.zeros(vocab_size, bool)
  # Files may list ids that this model does not have.
  ends[[i for i in base.tokenizer.end_ids if 0 <= i < vocab_size]] = True
  nothing: Any = np.zeros_like(ends)
  eos_id: Any = np.int32(base.tokenizer.eos_id)
  endings = generate.Endings(eos_id, ends, nothing, nothing)
  # Needed by the shape of the call; no row of it is used.
  table = np.zeros((1, base.config.embed_dim), np.float32)
  common = choices.common_start(prompt_ids)
  one = stop.run(lambda: choices.encode_shared(base, prompt_ids[0][:common]))
  written: list[list[int]] = [[] for _ in prompt_ids]
  done: dict[int, Continuation] = {}
  with writers.progress(
    total=len(prompt_ids),
    desc=label,
    unit='question',
    leave=False,
  ) as bar:
    while len(done) < len(prompt_ids):
      rest = [i for i in range(len(prompt_ids)) if i not in done]
      size = choices.num_rows(mesh, len(rest), batch_size)
      shared = _repeat(one, size, mesh)
      for index in choices.batches(
        rest, size, lambda i: len(prompt_ids[i]) + len(written[i])
      ):
        stop.check_together()
        suffixes = _suffixes(
          [[*prompt_ids[i][common:], *written[i]] for i in index],
          common,
          size,
          mesh,
        )

        def batch(shared=shared, suffixes=suffixes):
          return distributed.fetch(
            generate.generate(
              base.params,
              table,
              shared,
              suffixes,
              endings,
              graph=base.graph,
              max_new_tokens=min(_ROUND, max_new_tokens),
            )
          )

        out = stop.run(batch)[:, 0].tolist()
        for i, ids in zip(index, out, strict=False):
          new = list(itertools.takewhile(lambda token: not ends[token], ids))
          size_now = len(written[i]) + len(new)
          ended = 'end' if len(new) < len(ids) else ''
          if size_now >= max_new_tokens:
            ended = 'length'
          written[i] = [*written[i], *new][:max_new_tokens]
          if (begun := _next_begins(decode, written[i])) is not None:
            ended, written[i] = 'question', written[i][:begun]
          if ended:
            text = decode(written[i]).split(task_prompts.NEXT)[0]
            done[i] = Continuation(text.strip(), len(written[i]), ended)
            bar.update()
  return [done[i] for i in range(len(prompt_ids))]


def final_number(text: str) -> float | None:
  """The number after the last `task_prompts.MARKER`; None if there is none."""
  _, marker, after = text.rpartition(task_prompts.MARKER)
  return tasks.number(after) if marker else None


def is_right(value: float | None, answers: Sequence[str]) -> bool:
  """Whether a number equals one of the answers."""
  golds = [tasks.number(answer) for answer in answers]
  return value is not None and any(
    gold is not None and math.isclose(value, gold, rel_tol=1e-9)
    for gold in golds
  )


def _next_begins(
  decode: Callable[[Sequence[int]], str], ids: Sequence[int]
) -> int | None:
  """Tokens up to where the next question has begun; None if it has not."""
  if task_prompts.NEXT not in decode(ids):
    return None
  return next(
    size
    for size in range(1, len(ids) + 1)
    if task_prompts.NEXT in decode(ids[:size])
  )


def _repeat(cache: KVCache, rows: int, mesh: jax.sharding.Mesh) -> KVCache:
  """A cache of one row as one of many, spread over the devices."""
  keys: Any = partitioning.named_sharding(mesh, _KEY_AXES)
  values: Any = partitioning.named_sharding(mesh, _VALUE_AXES)
  rows_only: Any = partitioning.named_sharding(mesh, ('batch',))
  places = KVCache(keys, values, rows_only)
  repeat = functools.partial(choices.repeat_row, rows=rows)
  return jax.jit(repeat, out_shardings=places)(cache)


def _suffixes(
  suffixes: Sequence[Sequence[int]],
  first: int,
  rows: int,
  mesh: jax.sharding.Mesh,
) -> generate.Suffixes:
  """Right-padded rows whose positions begin at `first`."""
  length = answering.round_up(max(map(len, suffixes)), _SUFFIX_ROUND)
  ids: Any = np.zeros((rows, length), np.int32)
  positions: Any = np.full((rows, length), -1, np.int32)
  last: Any = np.full((rows, 1), -1, np.int32)
  for r, suffix in enumerate(suffixes):
    ids[r, : len(suffix)] = suffix
    positions[r, : len(suffix)] = np.arange(first, first + len(suffix))
    last[r] = len(suffix) - 1
  return partitioning.shard_rows(
    generate.Suffixes(ids=ids, positions=positions, segments=None, last=last),
    mesh,
    rows,
  )
