"""Turns passages, question, answer and k into token ids; no other module does.

`PromptEncoder` encodes each piece of text alone: a passage, a question, an
answer. `join` concatenates the pieces and cuts passages that do not fit. So a
passage has the same ids in every place and can be encoded once and kept
(`data/token_cache.py`), and training, evaluation and serving cannot differ.
Virtual token i is the id `vocab_size + i`; no text is spliced.
config.virtual_tokens.position decides only the order of the pieces.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vtokens.config import Config, Templates
from vtokens.data.records import Passage
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer

Ids = Int[np.ndarray, 'T']


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PassageIds:
  """Ids of a passage after its heading, int32.

  Attributes:
    body: all ids but the end; a passage that does not fit is cut here.
    end: end of a passage that another passage follows.
    last_end: end of the last passage, with the text after the passages.
  """

  body: Ids
  end: Ids
  last_end: Ids

  @property
  def lens(self) -> tuple[int, int, int]:
    """Lengths of body, end and last_end."""
    return len(self.body), len(self.end), len(self.last_end)


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

  @property
  def suffix_len(self) -> int:
    """Number of tokens after the prefix; the last target is never an input."""
    text = len(self.before) + len(self.after)
    return suffix_len(self.num_active, text, len(self.targets))

  def suffix(self, vocab_size: int) -> Ids:
    """Ids after the prefix, with virtual tokens, without the last target."""
    virtual = np.arange(
      vocab_size, vocab_size + self.num_active, dtype=np.int32
    )
    return np.concatenate([self.before, virtual, self.after, self.targets[:-1]])


def suffix_len(num_active: int, text: int, targets: int) -> int:
  """Length of a suffix.

  Args:
    num_active: number of virtual tokens.
    text: number of text tokens before and after them.
    targets: number of tokens of the answer and its end.
  """
  return num_active + text + max(0, targets - 1)


class PromptEncoder:
  """Encodes each piece of text that the templates have a place for.

  Args:
    tokenizer: tokenizer of the base.
    templates: text around the pieces.
  """

  def __init__(self, tokenizer: Tokenizer, templates: Templates):
    self.tokenizer = tokenizer
    self.templates = templates
    self._head, self._body, self._end = split_passage(templates.passage)
    # The first heading follows bos, the start of a chat turn, or nothing.
    self._encode_head = functools.cache(
      lambda index, first: _array(
        (tokenizer.encode if first else tokenizer.encode_after)(
          self._head.format(index=index)
        )
      )
    )
    # Evaluation asks each question in several ways, one after the other.
    self._encode_passages = functools.lru_cache(maxsize=1)(self._passages)

  def __reduce__(self):
    return type(self), (self.tokenizer, self.templates)

  def before(self, chat: bool) -> Ids:
    """Ids before the passages: bos, or the start of the user's turn."""
    if chat:
      return _array(self.tokenizer.chat_wrap[0])
    return _array(self.tokenizer.prefix_ids)

  def turn_end(self, chat: bool) -> Ids:
    """Ids that end the user's turn in a chat; empty otherwise."""
    return _array(self.tokenizer.chat_wrap[1] if chat else ())

  def head(self, index: int) -> Ids:
    """Ids of the heading of the passage shown at an index, from 1."""
    return self._encode_head(index, index == 1)

  def passages(self, passages: Sequence[Passage]) -> list[PassageIds]:
    """Ids of passages after their headings."""
    return list(self._encode_passages(tuple(passages)))

  def _passages(self, passages: Sequence[Passage]) -> list[PassageIds]:
    texts = [self._text(passage) for passage in passages]
    end, last_end = self._end, self._end + self.templates.after_passages
    whole = self.tokenizer.encode_batch_after([t + end for t in texts])
    # Earlier words do not depend on the end, so only the last word is encoded
    # again with each end.
    words = [text[max(text.rfind(' '), 0) :] for text in texts]
    bare, inner, last = (
      self.tokenizer.encode_batch_after([word + tail for word in words])
      for tail in ('', end, last_end)
    )
    result = []
    for text, ids, ids_bare, ids_inner, ids_last in zip(
      texts, whole, bare, inner, last, strict=True
    ):
      start = len(ids) - len(ids_inner)
      if start >= 0 and ids[start:] == ids_inner:
        alone, other = ids[:start] + ids_bare, ids[:start] + ids_last
      else:
        alone = self.tokenizer.encode_after(text)
        other = self.tokenizer.encode_after(text + last_end)
      # The body has no id of the end: a cut must not take the line break. It
      # has at least one id.
      shared = max(1, min(_shared_start(ids, x) for x in (alone, other)))
      result.append(
        PassageIds(
          body=_array(ids[:shared]),
          end=_array(ids[shared:]),
          last_end=_array(other[shared:]),
        )
      )
    return result

  def shown_text(self, passages: Sequence[Passage]) -> str:
    """The text of uncut passages with headings and ends."""
    texts = [
      self._head.format(index=i + 1) + self._text(passage) + self._end
      for i, passage in enumerate(passages)
    ]
    return ''.join([*texts, self.templates.after_passages] if texts else [])

  def _text(self, passage: Passage) -> str:
    if '{title}' in self._body:
      return self._body.format(title=passage.title, text=passage.text)
    text = passage.text
    if passage.title:
      text = f'{passage.title}\n{text}'
    return self._body.format(text=text)

  def prompt(self, question: str, *, name: str, chat: bool) -> Ids:
    """Ids of the question in a template, and of the end of the user's turn.

    Args:
      question: the question.
      name: the template's name: prompt, concat or instruction.
      chat: whether the prompt is a user's turn of a chat.
    """
    text = getattr(self.templates, name).format(question=question)
    return _array([*self.tokenizer.encode(text), *self.turn_end(chat)])

  def answers(self, answers: Sequence[str], *, chat: bool) -> list[Ids]:
    """Ids of each answer and the token that ends it."""
    if chat:
      template, end = self.templates.chat_answer, self.tokenizer.turn_end_id
    else:
      template, end = self.templates.answer, self.tokenizer.eos_id
    texts = [template.format(answer=answer) for answer in answers]
    return [
      _array([*ids, end]) for ids in self.tokenizer.encode_batch_after(texts)
    ]


def split_passage(template: str) -> tuple[str, str, str]:
  """Cuts `Templates.passage` into heading, body and end.

  The heading may have {index}. White space at its end belongs to the body,
  since it goes with the body's first word. The body has {text} and maybe
  {title}. The end is plain text.
  """
  found = _PASSAGE.fullmatch(template)
  assert found, template  # config.validate has seen it.
  head, body, end = found.groups()
  return head, body, end.format()


# {{ and }} stand for braces.
_PASSAGE = re.compile(
  r'((?:[^{}]|\{\{|\}\}|\{index\})*?)(\s*\{(?:title|text)\}(?:.*\})?)(.*)',
  re.DOTALL,
)


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
  """

  encoder: PromptEncoder
  limits: Limits
  position: str = 'middle'

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
    )

  def __call__(
    self,
    passages: Sequence[tuple[int, Passage]],
    question: str,
    *,
    answer: str | None = None,
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
      num_active: number of virtual tokens (k); 0 for none.
      prompt: template to use: prompt, concat or instruction.
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
    targets = _array([])
    if answer is not None:
      [targets] = self.encoder.answers([answer], chat=chat)
    prompt_ids = self.encoder.prompt(question, name=prompt, chat=chat)
    self.check_before(chat)
    self.check(num_active, len(prompt_ids), len(targets), where)
    ids = self.encoder.passages([passage for _, passage in passages])
    return join(
      self.encoder,
      [(rank, i) for (rank, _), i in zip(passages, ids, strict=True)],
      prompt_ids,
      targets,
      num_active=num_active,
      chat=chat,
      max_prefix=self.limits.prefix,
      position=position or self.position,
    )

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
    self, num_active: int, prompt: np.ndarray | int, targets: np.ndarray | int
  ) -> np.ndarray | bool:
    """Whether suffixes with parts of these lengths fit the limits.

    Args:
      num_active: number of virtual tokens.
      prompt: tokens of the question.
      targets: tokens of the answer and eos; 0 if it is to be generated.
    """
    inputs = num_active + prompt + np.maximum(0, np.subtract(targets, 1))
    return (targets <= self.limits.targets) & (inputs <= self.limits.suffix)

  def check(
    self, num_active: int, prompt: int, targets: int, where: str
  ) -> None:
    """Raises a `UserError` about record `where` unless it `fits`."""
    if not self.fits(num_active, prompt, targets):
      raise errors.UserError(
        f'{where}: {num_active} virtual tokens, {prompt} tokens of question '
        f'and {targets} of answer with eos do not fit '
        f'config.data.max_suffix_tokens={self.limits.suffix} and '
        f'max_answer_tokens={self.limits.targets}'
      )


def _shared_start(a: Sequence[int], b: Sequence[int]) -> int:
  count = 0
  for x, y in zip(a, b, strict=False):
    if x != y:
      break
    count += 1
  return count


def _concatenate(parts: Sequence[Ids]) -> Ids:
  return np.concatenate([_array([]), *parts])


def _array(ids: Sequence[int]) -> Any:
  return np.asarray(ids, np.int32)
