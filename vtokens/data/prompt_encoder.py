"""Encodes each piece of text of a prompt into token ids.

A piece (a passage, a question, an answer) is encoded alone, so it has the same
ids in every place and can be encoded once and kept (`data/token_cache.py`).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vtokens.config import Templates
from vtokens.data.records import Passage
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.scoring import citations

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
      lambda index, first: as_ids(
        (tokenizer.encode if first else tokenizer.encode_after)(
          self._head.format(index=index)
        )
      )
    )
    self._encode_citation = functools.cache(self._citation)
    # Evaluation asks each question in several ways, one after the other.
    self._encode_passages = functools.lru_cache(maxsize=1)(self._passages)

  def __reduce__(self) -> tuple[type, tuple[Tokenizer, Templates]]:
    return type(self), (self.tokenizer, self.templates)

  @property
  def identity(self) -> dict[str, Any]:
    """The templates as JSON values, as far as they decide ids of texts."""
    values = dataclasses.asdict(self.templates)
    del values['refusal']  # It is a text.
    return values

  def before(self, chat: bool) -> Ids:
    """Ids before the passages: bos, or the start of the user's turn."""
    if chat:
      return as_ids(self.tokenizer.chat_wrap[0])
    return as_ids(self.tokenizer.prefix_ids)

  def turn_end(self, chat: bool) -> Ids:
    """Ids that end the user's turn in a chat; empty otherwise."""
    return as_ids(self.tokenizer.chat_wrap[1] if chat else ())

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
          body=as_ids(ids[:shared]),
          end=as_ids(ids[shared:]),
          last_end=as_ids(other[shared:]),
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
      name: prompt, concat or instruction for that template, or a text with
        {question}.
      chat: whether the prompt is a user's turn of a chat.
    """
    template = name if '{' in name else getattr(self.templates, name)
    text = template.format(question=question)
    return as_ids([*self.tokenizer.encode(text), *self.turn_end(chat)])

  def answers(self, answers: Sequence[str], *, chat: bool) -> list[Ids]:
    """Ids of each answer without a citation, and the token that ends it."""
    end = self.tokenizer.turn_end_id if chat else self.tokenizer.eos_id
    template, _ = self._answer_template(chat)
    texts = [template.format(answer=answer) for answer in answers]
    return [
      as_ids([*ids, end]) for ids in self.tokenizer.encode_batch_after(texts)
    ]

  def _answer_template(self, chat: bool) -> tuple[str, str]:
    templates = self.templates
    return citations.split_template(
      templates.chat_answer if chat else templates.answer
    )

  def cites(self, *, chat: bool) -> bool:
    """Whether an answer names a passage."""
    return bool(self._answer_template(chat)[1])

  def cite(self, targets: Ids, source: int, *, chat: bool) -> Ids:
    """Ids of an answer with a citation before the token that ends it.

    Args:
      targets: ids of the answer and its end.
      source: number of the passage, from 1; 0 for no citation.
      chat: whether the answer is in a chat.
    """
    if not source:
      return targets
    citation = self._encode_citation(source, chat)
    return np.concatenate([targets[:-1], citation, targets[-1:]])

  def citation_len(self, source: int, *, chat: bool) -> int:
    """Tokens that a citation adds; see `cite`."""
    return len(self._encode_citation(source, chat)) if source else 0

  def _citation(self, source: int, chat: bool) -> Ids:
    text = self._answer_template(chat)[1].format(source=source)
    return as_ids(self.tokenizer.encode_after(text) if text else [])


def first_answer(answers: Sequence[str], templates: Templates) -> str:
  """The first accepted answer, or the refusal if there is none."""
  return answers[0] if answers else templates.refusal


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


def _shared_start(a: Sequence[int], b: Sequence[int]) -> int:
  count = 0
  for x, y in zip(a, b, strict=False):
    if x != y:
      break
    count += 1
  return count


def as_ids(ids: Sequence[int]) -> Ids:
  """An int32 array of ids."""
  return np.asarray(ids, np.int32)
