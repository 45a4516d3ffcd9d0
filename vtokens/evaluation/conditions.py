"""The ways to ask a question that are compared."""

import dataclasses

import numpy as np
from jaxtyping import Float

from vtokens.data.assemble import Assembler


@dataclasses.dataclass(frozen=True)
class Condition:
  """One way to ask.

  Attributes:
    passages: whether they are shown.
    template: which of `config.Templates` the question goes into: prompt,
      concat or instruction.
    chat: whether all of it is wrapped in the chat template; None is what the
      templates say.
    tokens: whether virtual tokens are used.
    position: where they stand: first (before the passages), middle (between
      passages and question), last (after the question); '' is where they
      were trained.
    text: what it is, for reports.
  """

  passages: bool = True
  template: str = 'prompt'
  chat: bool | None = False
  tokens: bool = False
  position: str = ''
  text: str = ''


def _tokens(text: str, **settings) -> Condition:
  return Condition(tokens=True, chat=None, text=text, **settings)


CONDITIONS = {
  'closed_book': Condition(passages=False, text='question alone'),
  'concat': Condition(template='concat', text='passages and question'),
  'plain': Condition(text='the text that surrounds the tokens, without them'),
  'prompt': Condition(
    template='instruction', text="passages, the paper's instruction, question"
  ),
  'chat_prompt': Condition(
    template='instruction',
    chat=True,
    text='the same inside the chat template',
  ),
  'tokens': _tokens('passages, virtual tokens, question'),
  'tokens_closed_book': _tokens('virtual tokens and question', passages=False),
  'tokens_prompt': _tokens(
    'passages, virtual tokens, instruction, question', template='instruction'
  ),
  'tokens_first': _tokens(
    'virtual tokens before the passages', position='first'
  ),
  'tokens_middle': _tokens(
    'virtual tokens between passages and question', position='middle'
  ),
  'tokens_last': _tokens('virtual tokens after the question', position='last'),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
  """Trained virtual tokens and the text around them.

  Attributes:
    name: unique in an evaluation.
    rows: the table, `P D` f32.
    assembler: with the templates that it was trained with, and the position
      of the tokens.
  """

  name: str
  rows: Float[np.ndarray, 'P D']
  assembler: Assembler
