"""From passages, question, answer and k to token ids: the only place.

Training, evaluation and serving all go through `Assembler`, so a virtual
token cannot get lost or moved between them. Virtual token i is the id
`vocab_size + i`; no text is ever spliced.
"""

import dataclasses
from collections.abc import Sequence

from vtokens import errors
from vtokens.config import Config, Templates
from vtokens.data.records import Passage
from vtokens.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """Token ids of one example, in the order in which the model sees them.

  Attributes:
    prefix: the tokenizer's own bos, if any, and the passages.
    num_active: virtual tokens that follow them (k).
    prompt: the question.
    targets: the answer and the token that ends it, or empty.
    passages_dropped: passages left out because the prefix was full.
    passages_cut: passages shortened for the same reason.
  """

  prefix: tuple[int, ...]
  num_active: int
  prompt: tuple[int, ...]
  targets: tuple[int, ...] = ()
  passages_dropped: int = 0
  passages_cut: int = 0

  @property
  def suffix_len(self) -> int:
    """Tokens after the prefix; the last target is never an input."""
    return self.num_active + len(self.prompt) + max(0, len(self.targets) - 1)

  def suffix(self, vocab_size: int) -> list[int]:
    """Virtual tokens, prompt, and all targets but the last."""
    virtual = range(vocab_size, vocab_size + self.num_active)
    return [*virtual, *self.prompt, *self.targets[:-1]]


@dataclasses.dataclass(frozen=True)
class Assembler:
  """Turns passages, question and answer into an `Example`.

  Attributes:
    tokenizer: of the base.
    templates: the text around them.
    max_prefix: longest prefix, in tokens; passages are cut to it.
    max_suffix: longest suffix, in tokens; nothing is cut to it.
    max_targets: longest answer with eos, in tokens; nothing is cut to it.
  """

  tokenizer: Tokenizer
  templates: Templates
  max_prefix: int
  max_suffix: int
  max_targets: int

  @classmethod
  def for_run(cls, tokenizer: Tokenizer, cfg: Config) -> 'Assembler':
    """The assembler of a run, with the limits of its largest bucket."""
    max_prefix, max_suffix = cfg.data.buckets[-1]
    return cls(
      tokenizer=tokenizer,
      templates=cfg.templates,
      max_prefix=max_prefix,
      max_suffix=max_suffix,
      max_targets=cfg.data.max_answer_tokens,
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
    where: str = 'question',
  ) -> Example:
    """Assembles one example.

    Args:
      passages: (rank, passage) in the order shown; where they are too long
        together, those of the highest rank number are cut first.
      question: the question.
      answer: one answer, or None when it is to be generated.
      num_active: virtual tokens (k); 0 for none.
      prompt: which of the templates prompt, concat, instruction to use.
      chat: wrap all of it in the user's turn of the model's chat template;
        None is what the templates say.
      where: names the record in errors.

    Returns:
      The example.

    Raises:
      errors.UserError: question, tokens and answer do not fit; they are never
        cut.
    """
    chat = self.in_chat(chat)
    encode = self.tokenizer.encode
    before: Sequence[int] = self.tokenizer.prefix_ids
    after: Sequence[int] = ()
    if chat:
      before, after = self.tokenizer.chat_wrap
    text = getattr(self.templates, prompt).format(question=question)
    prompt_ids = (*encode(text), *after)
    targets: tuple[int, ...] = ()
    if answer is not None and chat:
      reply = self.templates.chat_answer.format(answer=answer)
      targets = (
        *self.tokenizer.encode_after(reply),
        self.tokenizer.turn_end_id,
      )
    elif answer is not None:
      reply = self.templates.answer.format(answer=answer)
      targets = (*self.tokenizer.encode_after(reply), self.tokenizer.eos_id)
    if len(before) > self.max_prefix:
      raise errors.UserError(
        f'{where}: {len(before)} tokens of bos or chat template come before '
        f'the passages, more than the prefix of {self.max_prefix} tokens; '
        'raise the last of config.data.buckets'
      )
    fitted, dropped, cut = self._fit(passages, len(before))
    example = Example(
      prefix=(*before, *fitted),
      num_active=num_active,
      prompt=prompt_ids,
      targets=targets,
      passages_dropped=dropped,
      passages_cut=cut,
    )
    if len(targets) > self.max_targets:
      raise errors.UserError(
        f'{where}: the answer {answer!r} has {len(targets)} tokens with eos, '
        f'more than config.data.max_answer_tokens={self.max_targets}'
      )
    if example.suffix_len > self.max_suffix:
      raise errors.UserError(
        f'{where}: {num_active} virtual tokens, {len(prompt_ids)} tokens of '
        f'question and {len(targets)} of answer do not fit the suffix of '
        f'{self.max_suffix} tokens; raise the last of config.data.buckets'
      )
    return example

  def in_chat(self, chat: bool | None) -> bool:
    """What `chat` means: None is what the templates say."""
    return self.templates.chat if chat is None else chat

  def _fit(
    self, passages: Sequence[tuple[int, Passage]], used: int
  ) -> tuple[list[int], int, int]:
    """Ids of the passages' text, cut from the lowest-ranked passage on."""
    kept = {rank: passage.text for rank, passage in passages}
    titles = {rank: passage.title for rank, passage in passages}
    room = self.max_prefix - used

    def encode() -> list[int]:
      texts = [
        f'{titles[rank]}\n{kept[rank]}' if titles[rank] else kept[rank]
        for rank, _ in passages
        if rank in kept
      ]
      if not texts:
        return []
      rendered = ''.join(
        self.templates.passage.format(index=i, text=text)
        for i, text in enumerate(texts, 1)
      )
      return self.tokenizer.encode(rendered + self.templates.after_passages)

    cut = 0
    ids = encode()
    while len(ids) > room:
      rank = max(kept)
      text = kept[rank]
      # Longest start of the text with which all of it fits. A character more
      # is not always a token more, but what is returned was measured.
      low, high = 0, len(text) - 1
      best = None
      while low < high:
        middle = (low + high + 1) // 2
        kept[rank] = text[:middle]
        tried = encode()
        if len(tried) <= room:
          low, best = middle, tried
        else:
          high = middle - 1
      if best is not None:
        cut = 1
        ids = best
        break
      del kept[rank]
      ids = encode()
    return ids, len(titles) - len(kept), cut
