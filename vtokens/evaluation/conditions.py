"""The conditions of an evaluation: the ways to ask a question.

`CONDITIONS` has every condition by name. `add` adds one, here or in a user's
config file. The axes that apply, prompts and reports follow from its fields.
"""

import dataclasses

from vtokens.host import errors

_TEMPLATES = ('prompt', 'concat', 'instruction')
_POSITIONS = ('', 'first', 'middle', 'last')


@dataclasses.dataclass(frozen=True)
class Condition:
  """One way to ask a question.

  All fields but `text` are in the first line of a cell's file: another value
  means other answers.

  Attributes:
    passages: whether the prompt shows passages.
    template: the text around the question: prompt, concat or instruction for
      that field of `config.Templates`, or the text itself with {question}.
    chat: whether the chat template wraps the prompt; None for the value of
      `config.Templates.chat`.
    tokens: whether the prompt has virtual tokens, so that a trained table is
      needed.
    position: where the virtual tokens stand: first (before the passages),
      middle (between passages and question), last (after the question), or ''
      for the position of training.
    text: description for reports.
  """

  passages: bool = True
  template: str = 'prompt'
  chat: bool | None = False
  tokens: bool = False
  position: str = ''
  text: str = ''


CONDITIONS: dict[str, Condition] = {}


def add(name: str, condition: Condition) -> None:
  """Adds a condition, which `config.conditions` can then name.

  Adding an equal one again changes nothing: a config file may be read twice.

  Args:
    name: name in configs and reports.
    condition: the condition.

  Raises:
    errors.UserError: another condition has the name, or a field has an invalid
      value.
  """
  if CONDITIONS.get(name, condition) != condition:
    raise errors.UserError(
      f'condition {name}: there is another one of this name; choose a new name'
    )
  template, position = condition.template, condition.position
  if template not in _TEMPLATES and not _has_question(template):
    raise errors.UserError(
      f'condition {name}: template: expected one of {", ".join(_TEMPLATES)} or '
      f'a text with {{question}} and no other braces, got {template!r}'
    )
  if position not in (_POSITIONS if condition.tokens else ('',)):
    raise errors.UserError(
      f'condition {name}: position: expected first, middle or last, or nothing '
      f'without virtual tokens, got {position!r}'
    )
  CONDITIONS[name] = condition


def _has_question(template: str) -> bool:
  try:
    return template.format(question='a') != template.format(question='b')
  except (AttributeError, IndexError, KeyError, ValueError):
    return False


add('closed_book', Condition(passages=False, text='question alone'))
add('concat', Condition(template='concat', text='passages and question'))
add('plain', Condition(text='the text that surrounds the tokens, without them'))
add(
  'prompt',
  Condition(
    template='instruction', text="passages, the paper's instruction, question"
  ),
)
add(
  'chat_prompt',
  Condition(
    template='instruction',
    chat=True,
    text='the same inside the chat template',
  ),
)
add(
  'tokens',
  Condition(tokens=True, chat=None, text='passages, virtual tokens, question'),
)
add(
  'tokens_closed_book',
  Condition(
    tokens=True,
    chat=None,
    passages=False,
    text='virtual tokens and question',
  ),
)
add(
  'tokens_prompt',
  Condition(
    tokens=True,
    chat=None,
    template='instruction',
    text='passages, virtual tokens, instruction, question',
  ),
)
for _position, _text in (
  ('first', 'virtual tokens before the passages'),
  ('middle', 'virtual tokens between passages and question'),
  ('last', 'virtual tokens after the question'),
):
  add(
    f'tokens_{_position}',
    Condition(tokens=True, chat=None, position=_position, text=_text),
  )
