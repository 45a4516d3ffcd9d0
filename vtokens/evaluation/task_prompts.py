"""The paper's prompts for general tasks.

Their wording is that of arXiv 2405.19670, its slips included. What the paper
leaves open is decided here: an option stands on its own line after its letter;
examples come before the question in the same form, with a blank line between
two; what all of them share stands once, above the first. Where the data have
no passage, question type or subject, the line that would name it is left out.
"""

import string
from collections.abc import Callable, Sequence

from vtokens.evaluation.tasks import LoadedTask, Question

# Before the final number of gsm8k.
MARKER = 'The answer is:'
# Where a model that goes on writing examples begins the next one of gsm8k.
NEXT = 'Question:'

_BOOLQ = 'lease answer the following question. Only return true or false.'


def render(task: LoadedTask, question: Question) -> str:
  """The prompt of a question, examples included; the answer follows it."""
  header, block = _FORMATS[task.settings.format]
  parts = [
    block(example) + ' ' + solution(task, example)
    for example in task.shots(question)
  ]
  blocks = '\n\n'.join([*parts, block(question)])
  top = header(question)
  return f'{top}\n{blocks}' if top else blocks


def solution(task: LoadedTask, example: Question) -> str:
  """What follows the prompt of an example."""
  answer = example.answers[0]
  if task.settings.format == 'gsm8k':
    return f'{example.rationale} {MARKER} {answer}'
  return answer


def left_out(format: str, questions: Sequence[Question]) -> str:
  """Which line of the paper's prompt some questions lack; '' if none."""
  line, lacking = {
    'boolq': ("'Passage:' and the mention of passages", _no_passages),
    'commonsenseqa': ("'Please the following question about'", _no_topic),
    'mmlu': (
      "'The following are multiple choice questions about'",
      _no_topic,
    ),
    'gsm8k': ('', lambda question: False),
  }[format]
  count = sum(map(lacking, questions))
  if not count:
    return ''
  return (
    f'{count:,} of {len(questions):,} prompts are without the line {line}: '
    'the data do not say what belongs there'
  )


def _no_passages(question: Question) -> bool:
  return not question.passages


def _no_topic(question: Question) -> bool:
  return not question.topic


def _boolq_header(question: Question) -> str:
  if question.passages:
    return 'According to the given passages, p' + _BOOLQ
  return 'P' + _BOOLQ


def _boolq(question: Question) -> str:
  passages = [f'Passage: {passage}\n' for passage in question.passages]
  return f'{"".join(passages)}Question: {question.text}\nAnswer:'


def _commonsenseqa(question: Question) -> str:
  about = ''
  if question.topic:
    about = f'Please the following question about {question.topic}.\n'
  return f'{about}{_choices(question)}Answer:'


def _mmlu_header(question: Question) -> str:
  if not question.topic:
    return ''
  subject = question.topic.replace('_', ' ')
  return f'The following are multiple choice questions about {subject}.'


def _mmlu(question: Question) -> str:
  return f'{_choices(question)}Correct answer:'


def _choices(question: Question) -> str:
  lines = [
    f'{letter}. {choice}\n'
    for letter, choice in zip(
      string.ascii_uppercase, question.choices, strict=False
    )
  ]
  return f'Question: {question.text}\nChoices:\n{"".join(lines)}'


def _gsm8k(question: Question) -> str:
  return f'Question: {question.text} Answer:'


def _nothing(question: Question) -> str:
  return ''


_FORMATS: dict[
  str, tuple[Callable[[Question], str], Callable[[Question], str]]
] = {
  'boolq': (_boolq_header, _boolq),
  'commonsenseqa': (_nothing, _commonsenseqa),
  'mmlu': (_mmlu_header, _mmlu),
  'gsm8k': (_nothing, _gsm8k),
}
