"""The ids of prompts, outside of training. Needs no JAX."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from vtokens import errors
from vtokens.data.assemble import Assembler, Encoder
from vtokens.data.records import Passage
from vtokens.exports.artifact import Meta, Prompt
from vtokens.models.tokenizer import Tokenizer

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
    encoder=Encoder(tokenizer, prompt.templates),
    max_prefix=prompt.max_prefix_tokens,
    max_suffix=prompt.max_suffix_tokens,
    max_targets=0,
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
  """
  example = assembler(
    list(enumerate(map(_passage, passages))),
    question,
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
  """What is before and after virtual tokens in the middle, as text, uncut."""
  encoder = assembler.encoder
  return (
    encoder.shown_text(list(map(_passage, passages))),
    encoder.templates.prompt.format(question=question),
  )


def broken(text: str, tokens: Collection[str]) -> str:
  """Text in which a space breaks whatever reads as one of the tokens."""
  found = '|'.join(re.escape(t) for t in sorted(tokens, key=len, reverse=True))
  return re.sub(found, lambda m: f'{m[0][0]} {m[0][1:]}', text)


def _passage(passage: str | Mapping[str, str]) -> Passage:
  if isinstance(passage, str):
    return Passage(id='', title='', text=passage)
  return Passage(id='', title=passage.get('title', ''), text=passage['text'])


def probe(assembler: Assembler, virtual: Sequence[int]) -> tuple[int, ...]:
  """The ids of `PROBE` with the first two virtual tokens, uncut."""
  room = 1 << 20
  whole = dataclasses.replace(assembler, max_prefix=room, max_suffix=room)
  return tuple(ids(whole, *PROBE, virtual[:2]))


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
