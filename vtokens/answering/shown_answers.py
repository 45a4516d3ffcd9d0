"""Answers as `vtokens.ask` shows them: for people, and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.answering.requests import Completion
from vtokens.data.records import Passage

_LABELS = {
  'closed_book': 'without passages',
  'prompt': 'with an instruction',
  'chat_prompt': 'instruction, chat template',
}
_STOPS = {
  'end': 'ended by itself',
  'newline': 'ended by a line break',
  'stop': 'ended by a stop text',
  'length': 'cut at its longest length',
  'cancelled': 'cancelled',
}


def labels(names: Sequence[str], k: int) -> dict[str, str]:
  """What conditions are called.

  Args:
    names: the conditions.
    k: number of virtual tokens.
  """
  return {
    name: _LABELS.get(
      name, f'with {k} virtual tokens' if name == 'tokens' else name
    )
    for name in names
  }


def table(answers: Mapping[str, Completion], k: int) -> str:
  """Answers side by side.

  Args:
    answers: condition -> answer.
    k: number of virtual tokens.
  """
  names = labels(list(answers), k)
  width = max(map(len, names.values()))
  lines = [f'{"":<{width}}   confidence']
  for name, answer in answers.items():
    text = answer.text or '(empty)'
    lines.append(f'{names[name]:<{width}} {answer.confidence:10.2f}   {text}')
  return '\n'.join(lines)


def details(answer: Completion, passages: int) -> str:
  """One line about an answer.

  Args:
    answer: the answer.
    passages: number of passages that were given.
  """
  number = answer.completion_tokens
  parts = [
    f'confidence {answer.confidence:.2f}',
    f'{number} token{"" if number == 1 else "s"}, {_STOPS[answer.stop]}',
  ]
  if passages:
    parts.append(f'{len(answer.shown)} of {passages} passages')
  return f'({"; ".join(parts)}; {answer.seconds:.2f} s)'


def as_json(answer: Completion) -> dict[str, Any]:
  """An answer as JSON values."""
  return {
    'answer': answer.text,
    'confidence': round(answer.confidence, 6),
    'stop': answer.stop,
    'tokens': answer.completion_tokens,
    'prompt_tokens': answer.prompt_tokens,
    'passages_shown': list(answer.shown),
    'seconds': round(answer.seconds, 3),
  }


def passages_as_json(passages: Sequence[Passage]) -> list[dict[str, Any]]:
  """Passages as JSON values."""
  found = []
  for passage in passages:
    row: dict[str, Any] = {'text': passage.text}
    if passage.title:
      row = {'title': passage.title, **row}
    if passage.id:
      row = {'id': passage.id, **row}
    if passage.score is not None:
      row['score'] = passage.score
    found.append(row)
  return found
