"""Turns passages, question, answer and k into token ids; no other module does.

`prompt_encoder` encodes each piece alone. `join` concatenates the pieces and
cuts passages that do not fit. Training, evaluation and serving all use it, so
their prompts cannot differ. Virtual token i is the id `vocab_size + i`; no text
is spliced. config.virtual_tokens.position decides only the order of the pieces.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vtokens.config import Config
from vtokens.data.prompt_encoder import (
  Ids,
  PassageIds,
  PromptEncoder,
  as_ids,
)
from vtokens.data.records import Passage
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Example:
  """Token ids of one example, in the order in which the model sees them.

  The prefix holds the ids before any virtual token, so it does not depend on
  the table: it runs without gradient, and its keys and values can be shared.
  The parts hold, by the position of the virtual tokens:

  position  prefix           before    after
  first     start            -         passages, question, end of turn
  middle    start, passages  -         question, end of turn
  last      start, passages  question  end of turn

  The start is bos, or the start of the chat turn. Only a chat has the end of
  the turn. Either may be empty. With `first` the passages' activations depend
  on the table: they cannot be kept, and gradients flow through them.

  All ids are int32.

  Attributes:
    prefix: ids before the suffix; may be empty.
    before: ids between the prefix and the virtual tokens.
    num_active: number of virtual tokens (k).
    after: ids between the virtual tokens and the answer.
    targets: the answer and the token that ends it; empty without an answer.
    shown: ranks of the shown passages, in order, from 0.
    kept: number of body ids kept of each given passage; 0 if it was dropped.
    passages_dropped: number of passages that did not fit at all.
    passages_cut: number of passages that were shortened.
    in_suffix: whether the virtual tokens are tokens of the suffix, with ids.
      Otherwise they only take up positions.
  """

  prefix: Ids
  before: Ids
  num_active: int
  after: Ids
  targets: Ids
  shown: tuple[int, ...] = ()
  kept: tuple[int, ...] = ()
  passages_dropped: int = 0
  passages_cut: int = 0
  in_suffix: bool = True

  @property
  def num_inputs(self) -> int:
    """Number of virtual tokens that are tokens of the suffix."""
    return self.num_active if self.in_suffix else 0

  @property
  def suffix_len(self) -> int:
    """Number of tokens after the prefix; the last target is never an input."""
    text = len(self.before) + len(self.after)
    return suffix_len(self.num_inputs, text, len(self.targets))

  @property
  def first_position(self) -> int:
    """Position of the first virtual token."""
    return len(self.prefix) + len(self.before)

  def suffix(self, vocab_size: int) -> Ids:
    """Ids after the prefix, with virtual tokens, without the last target."""
    virtual = np.arange(
      vocab_size, vocab_size + self.num_inputs, dtype=np.int32
    )
    return np.concatenate([self.before, virtual, self.after, self.targets[:-1]])

  def suffix_positions(self) -> Ids:
    """Positions of the ids of `suffix`."""
    start = len(self.prefix)
    positions = np.arange(start, start + self.suffix_len, dtype=np.int32)
    positions[len(self.before) :] += self.num_active - self.num_inputs
    return positions


def suffix_len(num_active: int, text: int, targets: int) -> int:
  """Length of a suffix.

  Args:
    num_active: number of virtual tokens in it.
    text: number of text tokens before and after them.
    targets: number of tokens of the answer and its end.
  """
  return num_active + text + max(0, targets - 1)


def fit(
  ranks: Sequence[int],
  heads: Sequence[int],
  bodies: Sequence[int],
  ends: Sequence[int],
  last_ends: Sequence[int],
  room: int,
) -> list[int]:
  """Finds how many ids of each passage's body to keep.

  If the passages do not fit, those of the lowest rank (the highest number) go
  first: whole passages are dropped, and the last one to yield is cut at its
  end.

  Args:
    ranks: rank of each passage, in the order shown.
    heads: length of the heading at each index.
    bodies: length of each passage's body.
    ends: length of each passage's end.
    last_ends: length of each passage's end if it is the last passage.
    room: largest length of all passages together.

  Returns:
    Ids kept of each body; 0 for a dropped passage.
  """
  kept = list(bodies)
  while True:
    shown = [i for i, n in enumerate(kept) if n]
    if not shown:
      return kept
    last = shown[-1]
    total = sum(heads[at] + kept[i] + ends[i] for at, i in enumerate(shown))
    total += last_ends[last] - ends[last]
    if total <= room:
      return kept
    worst = max(shown, key=lambda i: ranks[i])
    kept[worst] = max(0, kept[worst] - (total - room))


def prefix_len(
  before: int,
  heads: Sequence[int],
  kept: Sequence[int],
  ends: Sequence[int],
  last_ends: Sequence[int],
) -> int:
  """Length of the start and of the passages that `fit` kept."""
  shown = [i for i, n in enumerate(kept) if n]
  if not shown:
    return before
  total = sum(heads[at] + kept[i] + ends[i] for at, i in enumerate(shown))
  return before + total + last_ends[shown[-1]] - ends[shown[-1]]


def join(
  encoder: PromptEncoder,
  passages: Sequence[tuple[int, PassageIds]],
  prompt: Ids,
  targets: Ids,
  *,
  num_active: int,
  chat: bool,
  max_prefix: int,
  position: str = 'middle',
  in_suffix: bool = True,
) -> Example:
  """Joins the pieces of one example.

  Args:
    encoder: encoder of the pieces.
    passages: (rank, ids) in the order shown; see `fit`.
    prompt: ids of the question.
    targets: ids of the answer; empty without one.
    num_active: number of virtual tokens (k).
    chat: whether the prompt is a user's turn of a chat.
    max_prefix: largest length of start and passages; the start fits.
    position: where the virtual tokens stand; see `Example`.
    in_suffix: see `Example`.
  """
  start = encoder.before(chat)
  pieces = [ids for _, ids in passages]
  heads = [encoder.head(i + 1) for i in range(len(pieces))]
  kept = fit(
    [rank for rank, _ in passages],
    [len(head) for head in heads],
    [len(ids.body) for ids in pieces],
    [len(ids.end) for ids in pieces],
    [len(ids.last_end) for ids in pieces],
    max_prefix - len(start),
  )
  shown = [i for i, n in enumerate(kept) if n]
  text: list[Ids] = []
  before: list[Ids] = []
  for at, i in enumerate(shown):
    end = pieces[i].last_end if i == shown[-1] else pieces[i].end
    text += [heads[at], pieces[i].body[: kept[i]], end]
  if position == 'first':
    prefix, after = [start], [*text, prompt]
  elif position == 'middle':
    prefix, after = [start, *text], [prompt]
  elif position == 'last':
    turn_end = len(prompt) - len(encoder.turn_end(chat))
    prefix, before = [start, *text], [prompt[:turn_end]]
    after = [prompt[turn_end:]]
  else:
    raise ValueError(f'no such position of virtual tokens: {position!r}')
  return Example(
    prefix=_concatenate(prefix),
    before=_concatenate(before),
    num_active=num_active,
    after=_concatenate(after),
    targets=targets,
    shown=tuple(passages[i][0] for i in shown),
    kept=tuple(kept),
    passages_dropped=len(pieces) - len(shown),
    passages_cut=sum(kept[i] < len(pieces[i].body) for i in shown),
    in_suffix=in_suffix,
  )


@dataclasses.dataclass(frozen=True)
class Limits:
  """The largest sizes of the parts of an example, in tokens.

  They hold wherever the virtual tokens stand.

  Attributes:
    prefix: start and passages together; passages are cut to it.
    suffix: question, virtual tokens and answer together; a longer one is an
      error.
    targets: the answer with eos; a longer one is an error. 0 where answers are
      only generated.
  """

  prefix: int
  suffix: int
  targets: int = 0


@dataclasses.dataclass(frozen=True)
class Assembler:
  """Turns passages, question and answer into an `Example`.

  Attributes:
    encoder: encodes the pieces with the base's tokenizer and the templates.
    limits: the sizes that an example must keep to.
    position: where the virtual tokens stand; see `Example`.
    in_suffix: whether they are tokens of the suffix; see `Example`.
    most_shown: most passages of an example with an answer, the largest number
      that a citation can name.
  """

  encoder: PromptEncoder
  limits: Limits
  position: str = 'middle'
  in_suffix: bool = True
  most_shown: int = 0

  @classmethod
  def for_run(cls, tokenizer: Tokenizer, cfg: Config) -> 'Assembler':
    """The assembler of a training run."""
    return cls(
      encoder=PromptEncoder(tokenizer, cfg.templates),
      limits=Limits(
        prefix=cfg.data.max_prefix_tokens,
        suffix=cfg.data.max_suffix_tokens,
        targets=cfg.data.max_answer_tokens,
      ),
      position=cfg.virtual_tokens.position,
      in_suffix=cfg.virtual_tokens.kind == 'table',
      most_shown=max(
        cfg.eval.num_passages,
        cfg.data.passages.number[1],
        *(policy.number[1] for policy in cfg.data.mixture.passages.values()),
      ),
    )

  def __call__(
    self,
    passages: Sequence[tuple[int, Passage]],
    question: str,
    *,
    answer: str | None = None,
    has_it: Sequence[bool] = (),
    num_active: int = 0,
    prompt: str = 'prompt',
    chat: bool | None = None,
    position: str | None = None,
    where: str = 'question',
  ) -> Example:
    """Assembles one example.

    Args:
      passages: (rank, passage) in the order shown; `fit` cuts them.
      question: the question.
      answer: one answer, or None if it is to be generated.
      has_it: whether each passage has the answer, for the citation; none cites
        none.
      num_active: number of virtual tokens (k); 0 for none.
      prompt: template to use: prompt, concat, instruction, or a text with
        {question}.
      chat: whether to wrap the prompt in the user's turn of the chat template;
        None follows `Templates.chat`.
      position: where the virtual tokens stand; None is the assembler's. With
        k = 0 all positions give the same ids; only the cut into prefix and
        suffix differs.
      where: name of the record in errors.

    Raises:
      errors.UserError: question, virtual tokens and answer do not fit. They
        are never cut.
    """
    chat = self.in_chat(chat)
    targets = as_ids([])
    if answer is not None:
      [targets] = self.encoder.answers([answer], chat=chat)
    prompt_ids = self.encoder.prompt(question, name=prompt, chat=chat)
    self.check_before(chat)
    self.check(num_active, len(prompt_ids), len(targets), where)
    ids = self.encoder.passages([passage for _, passage in passages])
    example = join(
      self.encoder,
      [(rank, i) for (rank, _), i in zip(passages, ids, strict=True)],
      prompt_ids,
      targets,
      num_active=num_active,
      chat=chat,
      max_prefix=self.limits.prefix,
      position=position or self.position,
      in_suffix=self.in_suffix,
    )
    if num_active and not self.in_suffix and not len(example.after):
      raise errors.UserError(
        f'{where}: keys and values as virtual tokens stand last, and nothing '
        'that would see them follows; expected the position first or middle, '
        'or a chat'
      )
    if answer is None or not self.encoder.cites(chat=chat) or not any(has_it):
      return example
    source = first_shown(example.kept, has_it)
    targets = self.encoder.cite(targets, source, chat=chat)
    return dataclasses.replace(example, targets=targets)

  def citation_room(self) -> int:
    """Most tokens that a citation adds to an answer of training."""
    chat = self.in_chat(None)
    if not self.encoder.cites(chat=chat):
      return 0
    numbers = range(1, self.most_shown + 1)
    lens = (self.encoder.citation_len(n, chat=chat) for n in numbers)
    return max(lens, default=0)

  @property
  def longest(self) -> tuple[int, int]:
    """Longest prefix and suffix that a training example can have.

    With the virtual tokens first, all but the start is suffix.
    """
    if self.position != 'first':
      return self.limits.prefix, self.limits.suffix
    start = len(self.encoder.before(self.in_chat(None)))
    return start, self.limits.prefix + self.limits.suffix

  def check_shapes(
    self, shapes: Sequence[tuple[int, int]], per_row: int, draws: int
  ) -> None:
    """Raises a `UserError` unless the last shape, if any, holds every row.

    Args:
      shapes: config.data.shapes.
      per_row: examples in a row.
      draws: suffixes of an example.
    """
    prefix, suffix = self.longest
    prefix, suffix = per_row * prefix, per_row * draws * suffix
    if shapes and (shapes[-1][0] < prefix or shapes[-1][1] < suffix):
      raise errors.UserError(
        f'config.data.shapes: expected the last one to be at least '
        f'({prefix}, {suffix}): {per_row} examples to a row, '
        f'virtual_tokens.draws_per_example={draws} and '
        f'position={self.position}; got {shapes!r}'
      )

  def refusal(self) -> Ids:
    """Ids of the refusal as a target, with the token that ends it."""
    [ids] = self.encoder.answers(
      [self.encoder.templates.refusal], chat=self.in_chat(None)
    )
    return ids

  def in_chat(self, chat: bool | None) -> bool:
    """Resolves `chat`: None follows `Templates.chat`."""
    return self.encoder.templates.chat if chat is None else chat

  def check_before(self, chat: bool) -> None:
    """Raises a `UserError` if the start alone exceeds the prefix limit."""
    before = len(self.encoder.before(chat))
    if before > self.limits.prefix:
      raise errors.UserError(
        f'{before} tokens of bos or chat template come before the passages, '
        f'more than config.data.max_prefix_tokens={self.limits.prefix}'
      )

  def fits(
    self,
    num_active: int,
    prompt: np.ndarray | int,
    targets: np.ndarray | int,
    *,
    cites: bool = True,
  ) -> np.ndarray | bool:
    """Whether suffixes with parts of these lengths fit the limits.

    Args:
      num_active: number of virtual tokens.
      prompt: tokens of the question.
      targets: tokens of the answer and eos; 0 if it is to be generated. The
        longest citation is added.
      cites: whether the answer can cite; a refusal cannot.
    """
    if room := cites and self.citation_room():
      targets = np.where(np.greater(targets, 0), targets + room, 0)
    inputs = num_active + prompt + np.maximum(0, np.subtract(targets, 1))
    return (targets <= self.limits.targets) & (inputs <= self.limits.suffix)

  def check(
    self,
    num_active: int,
    prompt: int,
    targets: int,
    where: str,
    *,
    cites: bool = True,
  ) -> None:
    """Raises a `UserError` about record `where` unless it `fits`."""
    if not self.fits(num_active, prompt, targets, cites=cites):
      room = cites and self.citation_room()
      raise errors.UserError(
        f'{where}: {num_active} virtual tokens, {prompt} tokens of question '
        f'and {targets} of answer with eos'
        f'{f" and {room} more of a citation" if room else ""} do not fit '
        f'config.data.max_suffix_tokens={self.limits.suffix} and '
        f'max_answer_tokens={self.limits.targets}'
      )


def first_shown(kept: Sequence[int], wanted: Sequence[bool]) -> int:
  """The shown number, from 1, of the first wanted passage; 0 without one.

  Args:
    kept: ids kept of each given passage's body; 0 if it was dropped.
    wanted: whether each given passage is wanted.
  """
  shown = [want for n, want in zip(kept, wanted, strict=True) if n]
  return shown.index(True) + 1 if True in shown else 0


def _concatenate(parts: Sequence[Ids]) -> Ids:
  return np.concatenate([as_ids([]), *parts])
