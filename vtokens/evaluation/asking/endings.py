"""The end of an answer: its tokens, and the text before it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtokens.method import generate
from vtokens.models.frozen_base import FrozenBase


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
  """Where an answer ends among its tokens.

  Attributes:
    stop: what ended it: end (a token for it), newline, or length.
    size: tokens before the one that ended it.
    shown: tokens whose text belongs to the answer. The token with the line
      break may begin with text.
    scored: tokens with the one that ended it.
  """

  stop: str
  size: int
  shown: int
  scored: int


class AnswerReader:
  """Finds ends of answers, and turns tokens into text.

  Args:
    base: the model.

  Attributes:
    is_end: which ids end an answer; array of shape [V], bool.
    is_newline: which ids have a line break in their text; likewise.
    is_blank: which ids are white space alone; likewise.
  """

  def __init__(self, base: FrozenBase):
    self._tokenizer = base.tokenizer
    self._known = frozenset(base.tokenizer.ids)
    size = base.config.vocab_size
    self.is_newline = np.zeros(size, bool)
    self.is_blank = np.zeros(size, bool)
    for i in base.tokenizer.ids:
      text = base.tokenizer.decode([i])
      self.is_newline[i] = '\n' in text
      self.is_blank[i] = not text.strip()
    self.is_end = generate.end_mask(base.tokenizer.end_ids, size)

  def endings(self, *, at_newline: bool) -> generate.Endings:
    """The masks, as generation takes them.

    Args:
      at_newline: whether line breaks end answers.
    """
    newline = self.is_newline if at_newline else np.zeros_like(self.is_newline)
    eos_id: Any = np.int32(self._tokenizer.eos_id)
    masks: Any = (self.is_end, newline, self.is_blank)
    return generate.Endings(eos_id, *masks)

  def find_end(self, tokens: Sequence[int], *, at_newline: bool) -> Ending:
    """Finds where the answer among some tokens ends."""
    begun = False
    for i, token in enumerate(tokens):
      begun |= not self.is_blank[token]
      newline = at_newline and begun and bool(self.is_newline[token])
      if self.is_end[token] or newline:
        stop = 'newline' if newline else 'end'
        return Ending(stop, size=i, shown=i + newline, scored=i + 1)
    size = len(tokens)
    return Ending('length', size, size, size)

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of tokens as it is."""
    # A padded embedding matrix has logits for ids without a token.
    return self._tokenizer.decode([i for i in tokens if i in self._known])


def tidy(text: str, *, at_newline: bool) -> str:
  """Text without white space around it, and without what follows its line.

  Args:
    text: what the model wrote.
    at_newline: whether line breaks end answers.
  """
  text = text.strip()
  return text.split('\n')[0].strip() if at_newline else text
