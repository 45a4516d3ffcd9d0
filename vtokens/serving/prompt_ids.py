"""The ids of prompts, outside of training. Needs no JAX."""

import dataclasses
import io
import numbers
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from vtokens.data.assemble import Assembler, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.data.records import Passage
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.serving.artifact import Meta, Prompt

# Whatever tokenizers do differently: spaces and line breaks, digits, accents,
# other scripts, and text that looks like special and virtual tokens.
PROBE = (
  (
    {'title': 'Zürich', 'text': ' 1,024 metres;  two spaces, naïve — 東京 🗼'},
    'A [ref1] and a </s> or <|im_end|> in a text.\n\nAre they text?\t',
  ),
  'Who wrote "[ref2]" in 1859?',
)


def assembler(tokenizer: Tokenizer, prompt: Prompt) -> Assembler:
  """What puts prompts together as in training."""
  return Assembler(
    encoder=PromptEncoder(tokenizer, prompt.templates),
    limits=Limits(
      prefix=prompt.max_prefix_tokens, suffix=prompt.max_suffix_tokens
    ),
    position=prompt.position,
  )


def ids(
  assembler: Assembler,
  passages: Sequence[str | Mapping[str, str]],
  question: str,
  virtual: Sequence[int],
) -> list[int]:
  """The ids of a prompt; see `plug.prompt_ids`.

  Args:
    assembler: of the tokenizer and the table.
    passages: texts, or dicts with `text` and maybe `title`, best first.
    question: the question.
    virtual: ids of the virtual tokens to use.

  Raises:
    errors.UserError: passages or question are no text, or the question is too
      long.
  """
  example = assembler(
    list(enumerate(read_passages(passages))),
    check_question(question),
    num_active=len(virtual),
    where='the question',
  )
  return [
    *example.prefix.tolist(),
    *example.before.tolist(),
    *virtual,
    *example.after.tolist(),
  ]


def texts(
  assembler: Assembler,
  passages: Sequence[str | Mapping[str, str]],
  question: str,
) -> tuple[str, str]:
  """What is before and after virtual tokens in the middle, as text, uncut.

  Raises:
    errors.UserError: passages or question are no text.
  """
  encoder = assembler.encoder
  return (
    encoder.shown_text(read_passages(passages)),
    encoder.templates.prompt.format(question=check_question(question)),
  )


def broken(text: str, tokens: Collection[str]) -> str:
  """Text in which a space breaks whatever reads as one of the tokens."""
  found = '|'.join(re.escape(t) for t in sorted(tokens, key=len, reverse=True))
  return re.sub(found, lambda m: f'{m[0][0]} {m[0][1:]}', text)


def read_passages(passages: Any) -> list[Passage]:
  """Passages as a program gives them.

  Args:
    passages: texts, dicts with `text` and maybe `title`, or `Passage`s, best
      first.

  Raises:
    errors.UserError: they are something else.
  """
  # A set has no order. Arrays of NumPy and tables of pandas have dimensions.
  if (
    isinstance(passages, (str, bytes, Mapping, Set, io.IOBase))
    or not isinstance(passages, Iterable)
    or getattr(passages, 'ndim', 1) != 1
  ):
    raise errors.UserError(
      'passages: expected a list of texts or of dicts with "text", got '
      f'{_shown(passages)}; a single passage is a list of one'
    )
  return [_passage(one, f'passages[{i}]') for i, one in enumerate(passages)]


def _passage(passage: Any, where: str) -> Passage:
  if isinstance(passage, Passage):
    return passage
  if isinstance(passage, str):
    return Passage(id='', title='', text=check_text(passage, where))
  if not isinstance(passage, Mapping):
    raise errors.UserError(
      f'{where}: expected a text or a dict with "text", got {_shown(passage)}'
    )
  if 'text' not in passage:
    keys = ', '.join(sorted(map(repr, passage))[:5])
    raise errors.UserError(
      f'{where}: expected a dict with "text" and maybe "title", got the keys '
      f'{keys or "of an empty dict"}'
    )
  title = passage.get('title')
  return Passage(
    id='',
    title='' if title is None else check_text(title, f'{where}["title"]'),
    text=check_text(passage['text'], f'{where}["text"]'),
  )


def check_question(question: Any, where: str = 'question') -> str:
  """The question itself.

  Args:
    question: what was given.
    where: its name, for messages.

  Raises:
    errors.UserError: it is no text, or blank.
  """
  text = check_text(question, where)
  if not text.strip():
    raise errors.UserError(f'{where}: expected a text that is not blank')
  return text


def check_text(text: Any, where: str) -> str:
  """The text itself.

  Raises:
    errors.UserError: it is no text, or has lone surrogates, which no tokenizer
      encodes.
  """
  if not isinstance(text, str):
    raise errors.UserError(f'{where}: expected a text, got {_shown(text)}')
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise errors.UserError(
      f'{where}: character {e.start:,} is half of a surrogate pair '
      f'({text[e.start]!r}), which is no character: the text was decoded or '
      'cut wrongly'
    ) from None
  return text


def check_number(
  k: Any, least: int, most: int, where: str, why: str = ''
) -> int:
  """A number of virtual tokens.

  Args:
    k: what was given.
    least: smallest that is allowed.
    most: largest.
    where: its name, for messages.
    why: why no more are allowed, for messages.

  Raises:
    errors.UserError: it is another number, or none.
  """
  integer = isinstance(k, numbers.Integral) and not isinstance(k, bool)
  if not integer or not least <= k <= most:
    raise errors.UserError(
      f'{where}={_shown(k)}: expected a whole number from {least} to '
      f'{most}{why}'
    )
  return int(k)


def _shown(value: Any) -> str:
  if isinstance(value, numbers.Number):
    return repr(value)
  if value is None:
    return 'None'
  text = repr(value) if isinstance(value, (str, bytes)) else ''
  if text and len(text) > 40:
    text = f'{text[:40]}...'
  return f'{type(value).__name__} {text}'.strip()


def probe(assembler: Assembler, virtual: Sequence[int]) -> tuple[int, ...]:
  """The ids of `PROBE` with the first two virtual tokens, uncut."""
  room = 1 << 20
  whole = dataclasses.replace(assembler, limits=Limits(room, room))
  return tuple(ids(whole, *PROBE, virtual[:2]))


def check_ids(meta: Meta) -> None:
  """Raises unless virtual tokens follow all ids of the base.

  Raises:
    errors.UserError: they have ids of the base, as in other formats.
  """
  ids, first = meta.tokens.ids, meta.base.vocab_size
  if ids[0] < first or ids != tuple(range(ids[0], ids[0] + len(ids))):
    raise errors.UserError(
      f'expected ids from {first} on, as --to vtokens writes them, got '
      f'{ids[0]} to {ids[-1]}'
    )


def check(assembler: Assembler, meta: Meta) -> None:
  """Raises if a tokenizer is not the one of the base.

  Raises:
    errors.UserError: it gives other ids to `PROBE`.
  """
  found = probe(assembler, meta.tokens.ids)
  if found != meta.tokens.probe:
    at = next(
      (
        i
        for i, (a, b) in enumerate(zip(found, meta.tokens.probe, strict=False))
        if a != b
      ),
      min(len(found), len(meta.tokens.probe)),
    )
    raise errors.UserError(
      'this tokenizer is not the one that the virtual tokens were trained '
      f'with, of {meta.base.id}: of a prompt to try it with, the id at {at} is '
      f'{found[at : at + 1]}, expected {meta.tokens.probe[at : at + 1]}'
    )
