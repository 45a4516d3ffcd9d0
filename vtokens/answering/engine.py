"""An engine: one loaded base, and virtual tokens that come and go."""

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from vtokens import config
from vtokens.answering import prompts, trained_source
from vtokens.answering.batch import Batch, Device
from vtokens.answering.prefix_cache import PrefixCache
from vtokens.answering.requests import (
  Completion,
  Increment,
  Prepared,
  Request,
)
from vtokens.answering.trained_source import TrainedSource
from vtokens.data.assemble import Assembler, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.devices import partitioning
from vtokens.evaluation.asking.endings import AnswerReader
from vtokens.evaluation.trained_tokens import BranchTokens, TrainedTokens, stack
from vtokens.host import errors, paths
from vtokens.models import frozen_base
from vtokens.models.frozen_base import FrozenBase, OpenBase
from vtokens.serving import trained_file

# New tokens of a round, after which other batches may run.
_ROUND = 16
# Rows that stacked tables are padded to a multiple of, so that other tables
# seldom mean another program.
_TABLE_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Virtual tokens of an engine.

  Attributes:
    source: what was read.
    tokens: the same, ready for prompts.
    refusal_bias: of requests that do not say; see `Request`.
  """

  source: TrainedSource
  tokens: TrainedTokens
  refusal_bias: float = 0.0

  @property
  def count(self) -> int:
    """Number of virtual tokens: the largest k."""
    return len(self.tokens)

  @property
  def values(self) -> trained_file.Trained:
    """The trained values of the first `count` virtual tokens.

    A table, array of shape [P, D], float32; or a dict of `keys` and `values`,
    arrays of shape [L, P, K, H], float32.
    """
    return self.tokens.values

  @property
  def kind(self) -> config.Kind:
    """What the values are; see `config.VirtualTokens.kind`."""
    return self.source.settings.kind

  @property
  def sha256(self) -> str:
    """SHA-256 of all values of the file; see `trained_file.sha256`."""
    return self.source.sha256


class Engine:
  """Answers requests with one base and any number of tables.

  Args:
    opened: the base, opened.
    base: the same, loaded.
    mesh: the devices.
    batch_size: most requests that run together.
    prefix_cache_bytes: most bytes of kept prefixes; see `PrefixCache`.

  Attributes:
    base: the base.
    context_length: most tokens of a prompt and its answer together.
    batch_size: most requests that run together.
    prefixes: the cache of prefixes.
  """

  def __init__(
    self,
    opened: OpenBase,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int = 32,
    prefix_cache_bytes: int = 1 << 30,
  ):
    self._opened = opened
    self.base = base
    self.context_length = frozen_base.longest_sequence(base)
    self.batch_size = partitioning.round_up_rows(mesh, batch_size)
    self.prefixes = PrefixCache(base, mesh, prefix_cache_bytes)
    self._reader = AnswerReader(base)
    self._device = Device(
      base,
      mesh,
      self.prefixes,
      self._reader,
      threading.Lock(),
    )
    # Replaced as a whole, so that readers need no lock.
    self._tables: Mapping[str, Table] = {}
    self._changing = threading.Lock()
    room = self.context_length
    self._plain = Assembler(
      PromptEncoder(base.tokenizer, config.Templates()), Limits(room, room)
    )

  @classmethod
  def open(
    cls,
    directory: epath.PathLike,
    name: str = 'tokens',
    *,
    base: config.Base | str | None = None,
    batch_size: int = 32,
    prefix_cache_bytes: int = 1 << 30,
    refusal_bias: float = 0.0,
    where: str = 'directory',
  ) -> 'Engine':
    """Loads the base of a run or an export, and adds its virtual tokens.

    Args:
      directory: work directory of a finished run, or a `vtokens` export.
      name: name of its virtual tokens.
      base: where the base is, or also how it is kept; None as in training.
      batch_size: see `Engine`.
      prefix_cache_bytes: see `Engine`.
      refusal_bias: see `add`.
      where: the flag or argument that names the directory, for messages.

    Raises:
      errors.UserError: a file is missing or broken, the base is another, or
        there is a bias and the virtual tokens were not trained to refuse.
    """
    source = trained_source.read(directory, where)
    prompts.check_refusal_bias(refusal_bias, source.refuses)
    if isinstance(base, str):
      base = dataclasses.replace(source.base, path=paths.expand_home(base))
    try:
      opened = frozen_base.open_base(base or source.base, source.context_length)
    except errors.UserError as e:
      if base is not None:
        raise
      raise errors.UserError(
        f'{e}; if it is elsewhere now, say where: base=PATH, or --base PATH'
      ) from None
    source.check_base(opened)
    mesh = partitioning.make_mesh((-1, 1, 1))
    engine = cls(
      opened,
      opened.load(mesh),
      mesh,
      batch_size=batch_size,
      prefix_cache_bytes=prefix_cache_bytes,
    )
    engine._put(name, source, refusal_bias)
    return engine

  @classmethod
  def open_base(
    cls,
    settings: config.Base,
    *,
    batch_size: int = 32,
    prefix_cache_bytes: int = 1 << 30,
  ) -> 'Engine':
    """Loads a base, without any virtual tokens.

    Raises:
      errors.UserError: the base is not found, not supported, or broken.
    """
    opened = frozen_base.open_base(settings)
    mesh = partitioning.make_mesh((-1, 1, 1))
    return cls(
      opened,
      opened.load(mesh),
      mesh,
      batch_size=batch_size,
      prefix_cache_bytes=prefix_cache_bytes,
    )

  @property
  def tables(self) -> Mapping[str, Table]:
    """The virtual tokens by name, as they are now."""
    return self._tables

  def add(
    self, name: str, directory: epath.PathLike, *, refusal_bias: float = 0.0
  ) -> Table:
    """Adds virtual tokens, or replaces those of the same name.

    Requests that were prepared before keep what they had.

    Args:
      name: name for requests.
      directory: work directory of a finished run, or a `vtokens` export.
      refusal_bias: of requests that do not say; see `Request`.

    Raises:
      errors.UserError: the directory holds none, they were trained on another
        base, or there is a bias and they were not trained to refuse.
    """
    if not isinstance(name, str) or not name.strip():
      raise errors.UserError(
        f'name: expected a text that is not blank, got {name!r}'
      )
    source = trained_source.read(directory, os.fspath(directory))
    prompts.check_refusal_bias(refusal_bias, source.refuses)
    source.check_base(self._opened)
    return self._put(name, source, refusal_bias)

  def remove(self, name: str) -> None:
    """Removes virtual tokens; requests that were prepared before have them.

    Raises:
      errors.UserError: there are none of this name.
    """
    with self._changing:
      self._table(name)
      self._tables = {n: t for n, t in self._tables.items() if n != name}

  def _put(
    self, name: str, source: TrainedSource, refusal_bias: float
  ) -> Table:
    assembler = source.assembler(self.base.tokenizer)
    table = Table(source, source.tokens(name, assembler), refusal_bias)
    with self._changing:
      self._tables = {**self._tables, name: table}
    return table

  def _table(self, name: str) -> Table:
    found = self._tables.get(name)
    if found is None:
      raise errors.UserError(
        f'table: there are no virtual tokens of the name {name!r}; there are '
        f'{errors.several(self._tables)}'
      )
    return found

  def prepare(self, request: Request) -> Prepared:
    """Checks a request and turns it into ids, without the device.

    Raises:
      errors.UserError: a field is wrong, the table is not there, or the prompt
        is too long; the message names the field.
    """
    table = None if request.table is None else self._table(request.table)
    defaults = config.Decode() if table is None else table.source.decode
    tokens = None if table is None else table.tokens
    return prompts.prepare(
      request,
      self.base,
      tokens,
      self._plain if tokens is None else tokens.assembler,
      defaults,
      self.context_length,
      0.0 if table is None else table.refusal_bias,
    )

  def answer(
    self,
    requests: Sequence[Request | Prepared],
    *,
    batch_size: int | None = None,
  ) -> list[Completion]:
    """Answers requests, batch by batch.

    Args:
      requests: any number.
      batch_size: most that run together; None for that of the engine.

    Returns:
      One completion for each, in the same order.

    Raises:
      errors.UserError: see `prepare`; nothing was answered.
    """
    prepared = self._prepare_all(requests)
    found: dict[int, Completion] = {}
    for batch in self._batches(prepared, batch_size):
      while not batch.done:
        for increment in batch.advance(_ROUND):
          if increment.completion is not None:
            found[increment.number] = increment.completion
    return [found[number] for number in range(len(prepared))]

  def stream(
    self, requests: Sequence[Request | Prepared], *, every: int = 4
  ) -> Iterator[Increment]:
    """Answers requests and yields text as it comes.

    Args:
      requests: any number; up to `batch_size` of them run together.
      every: new tokens of a round; the first round has one.

    Raises:
      errors.UserError: see `prepare`; raised at once, before the iteration.
    """
    prepared = self._prepare_all(requests)

    def increments() -> Iterator[Increment]:
      for batch in self._batches(prepared):
        tokens = 1
        while not batch.done:
          yield from batch.advance(tokens)
          tokens = every

    return increments()

  def start(self, requests: Sequence[Request | Prepared]) -> Sequence[Batch]:
    """Batches of requests that the caller advances.

    Requests with keys and values of different names cannot share a batch, nor
    can more than `batch_size` requests. Otherwise there is one batch.

    Args:
      requests: any number.

    Raises:
      errors.UserError: see `prepare`.
    """
    return list(self._batches(self._prepare_all(requests)))

  @property
  def has_chat_template(self) -> bool:
    """Whether the base has a chat template."""
    return self.base.tokenizer.has_chat_template

  def token_text(self, token: int) -> str:
    """The text of one token alone; '' of a special token."""
    return self._reader.decode([token])

  def _prepare_all(
    self, requests: Sequence[Request | Prepared]
  ) -> list[Prepared]:
    return [
      one if isinstance(one, Prepared) else self.prepare(one)
      for one in requests
    ]

  def _batches(
    self, prepared: Sequence[Prepared], batch_size: int | None = None
  ) -> Iterator[Batch]:
    """Splits requests into batches, longest prompts first."""
    size = batch_size or self.batch_size
    groups: dict[int, list[int]] = {}
    order = sorted(
      range(len(prepared)), key=lambda i: -prepared[i].prompt_tokens
    )
    for number in order:
      tokens = prepared[number].tokens
      # All tables can be stacked.
      alone = tokens is not None and not tokens.trainable.in_suffix
      groups.setdefault(id(tokens) if alone else 0, []).append(number)
    for group in groups.values():
      for start in range(0, len(group), size):
        numbers = group[start : start + size]
        part = [prepared[number] for number in numbers]
        branches, first_ids = stack(
          [one.tokens for one in part], self.base.config
        )
        yield Batch(
          self._device, numbers, part, _padded(branches[0]), first_ids
        )


def _padded(tokens: BranchTokens) -> BranchTokens:
  """Virtual tokens with stacked tables padded to few sizes."""
  if not tokens.trainable.in_suffix:
    return tokens
  rows = -len(tokens.values) % _TABLE_ROWS
  return dataclasses.replace(
    tokens, values=np.pad(tokens.values, ((0, rows), (0, 0)))
  )
