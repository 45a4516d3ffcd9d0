"""Texts that the model writes after prompts, until a stop sequence.

Generation goes in rounds of some tokens. After each round, complete texts leave
the batch, so that the others share fuller batches. A stop sequence is any text,
however the model cuts it into tokens.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vtokens.data.prompt_encoder import Ids
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.harness import prompt_batches
from vtokens.host import stopping, writers
from vtokens.method import generate
from vtokens.models.cache import Cache
from vtokens.models.frozen_base import FrozenBase

# New tokens of a round.
_ROUND = 64
_SUFFIX_BUCKET = 64


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class OpenPrompt:
  """A prompt to be continued.

  Attributes:
    name: decides what is drawn, together with the seed.
    prompt: ids, bos and virtual tokens included, int32; at least one.
    until: texts that end the continuation.
  """

  name: str
  prompt: Ids
  until: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenChoice:
  """How tokens are chosen.

  Attributes:
    max_new_tokens: longest continuation.
    temperature: 0 takes the most likely token.
    top_p: draws are among the most likely tokens with this probability
      together; 1 for all tokens.
    seed: of the draws.
  """

  max_new_tokens: int
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Continuation:
  """What a model wrote after a prompt.

  Attributes:
    text: without the stop sequence.
    num_tokens: generated, those of the stop sequence included, a token that
      means the end left out.
    stop: what ended it: end (a token that means the end), until (a stop
      sequence) or length.
  """

  text: str
  num_tokens: int
  stop: str


def continue_prompts(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  tasks: Sequence[OpenPrompt],
  draw: TokenChoice,
  *,
  table: Float[np.ndarray, 'P D'],
  batch_size: int,
  label: str,
  stop: stopping.StopRequest,
) -> Iterator[tuple[int, Continuation]]:
  """Continues prompts; a continuation does not depend on its batch.

  Args:
    base: the frozen model.
    mesh: the devices; rows of a batch lie over data and fsdp.
    tasks: the prompts.
    draw: how tokens are chosen.
    table: of virtual tokens, array of shape [P, D], float32; the id of its row
      i is `vocab_size + i`.
    batch_size: prompts at a time; see `prompt_batches.num_rows`.
    label: of the progress bar.
    stop: drops the batch that is being continued.

  Yields:
    The number of a task and its continuation, in the order in which they end.
  """
  writer = _Writer(base, mesh, table, draw)
  prompts = [task.prompt for task in tasks]
  with writers.progress(
    total=len(tasks), desc=label, unit='prompt', leave=False
  ) as bar:
    for group, common, start in prompt_batches.started_groups(
      base, table, prompts, batch_size, stop
    ):
      written: dict[int, list[int]] = {i: [] for i in group}
      while written:
        size = prompt_batches.num_rows(mesh, len(written), batch_size)
        shared = _repeat(start, size, mesh)
        for index in prompt_batches.batches(
          [*written], size, functools.partial(_length, prompts, written)
        ):
          stop.check_together()
          begun = [(tasks[i], written[i]) for i in index]
          out = stop.run(
            functools.partial(writer.go_on, shared, common, begun, size)
          )
          for i, ids in zip(index, out, strict=False):
            found = writer.look(tasks[i], written[i], ids)
            if found is not None:
              del written[i]
              yield i, found
              bar.update()


def _length(
  prompts: Sequence[Ids], written: Mapping[int, list[int]], i: int
) -> tuple[int]:
  return (len(prompts[i]) + len(written[i]),)


class _Writer:
  """Writes rounds of tokens and looks for ends.

  Args:
    base: the frozen model.
    mesh: the devices.
    table: of virtual tokens.
    draw: how tokens are chosen.
  """

  def __init__(
    self,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    table: Float[np.ndarray, 'P D'],
    draw: TokenChoice,
  ):
    self._base = base
    self._mesh = mesh
    self._table = table
    self._draw = draw
    self._known = frozenset(base.tokenizer.ids)
    self._ends: Any = generate.end_mask(
      base.tokenizer.end_ids, base.config.vocab_size
    )

  def go_on(
    self,
    start: Cache,
    common: int,
    begun: Sequence[tuple[OpenPrompt, list[int]]],
    size: int,
  ) -> list[list[int]]:
    """The next tokens of each text, eos after its end.

    Args:
      start: cache of what all prompts begin with, for all rows.
      common: how many ids that is.
      begun: the prompts of a batch, and what is written after each.
      size: rows of the batch.
    """
    nothing: Any = np.zeros_like(self._ends)
    eos_id: Any = np.int32(self._base.tokenizer.eos_id)
    out = generate.generate(
      self._base.params,
      self._table,
      start,
      _suffixes(
        [[*task.prompt[common:], *ids] for task, ids in begun],
        common,
        size,
        self._mesh,
      ),
      generate.Endings(eos_id, self._ends, nothing, nothing),
      self._sampling(begun, size) if self._draw.temperature else None,
      graph=self._base.graph,
      max_new_tokens=min(_ROUND, self._draw.max_new_tokens),
    )
    new: list[list[int]] = distributed.fetch(out.ids)[:, 0].tolist()
    return new

  def look(
    self, task: OpenPrompt, written: list[int], new: list[int]
  ) -> Continuation | None:
    """Adds tokens to a text; the continuation if it ends with them."""
    kept = list(itertools.takewhile(lambda token: not self._ends[token], new))
    most = self._draw.max_new_tokens
    stop = 'end' if len(kept) < len(new) else ''
    if len(written) + len(kept) >= most:
      stop = 'length'
    written[:] = [*written, *kept][:most]
    stopped = _first_stop(self._decode, written, task.until)
    if stopped is not None:
      stop = 'until'
      del written[stopped:]
    if not stop:
      return None
    text = self._decode(written)
    places = [at for until in task.until if (at := text.find(until)) >= 0]
    return Continuation(
      text[: min(places, default=len(text))], len(written), stop
    )

  def _decode(self, ids: Sequence[int]) -> str:
    # A padded embedding matrix has rows, so logits, of ids without a token.
    return self._base.tokenizer.decode([i for i in ids if i in self._known])

  def _sampling(
    self, begun: Sequence[tuple[OpenPrompt, list[int]]], size: int
  ) -> generate.Sampling:
    # Each round has draws of its own.
    names = [f'{self._draw.seed} {len(ids)} {task.name}' for task, ids in begun]
    keys: Any = generate.sampling_keys(names, size)
    return generate.make_sampling(
      partitioning.shard_rows(keys, self._mesh, size),
      self._draw.temperature,
      self._draw.top_p,
    )


def _first_stop(
  decode: Callable[[Sequence[int]], str],
  ids: Sequence[int],
  until: Sequence[str],
) -> int | None:
  """Tokens up to the end of the first stop sequence; None without one."""

  def has_one(size: int) -> bool:
    text = decode(ids[:size])
    return any(part in text for part in until)

  if not has_one(len(ids)):
    return None
  return next(size for size in range(1, len(ids) + 1) if has_one(size))


@functools.partial(jax.jit, static_argnames=('rows', 'mesh'))
def _repeat(cache: Cache, rows: int, mesh: jax.sharding.Mesh) -> Cache:
  """A cache of one row as a cache of many rows, spread over the devices."""
  return cache.repeated(rows).constrained(mesh)


def _suffixes(
  suffixes: Sequence[Sequence[int]],
  first: int,
  rows: int,
  mesh: jax.sharding.Mesh,
) -> generate.Suffixes:
  """Right-padded rows whose positions begin at `first`."""
  length = prompt_batches.bucket(max(map(len, suffixes)), _SUFFIX_BUCKET)
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
