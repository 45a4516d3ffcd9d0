"""Files of questions for the paper's general tasks.

A file has one JSON object a line: `id`, `question`, `answers`, and where they
apply `choices`, `rationale`, `passages`, `subject` and `question_type`.
"""

import dataclasses
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vtokens.data import files
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import RowFields
from vtokens.evaluation.tasks import Task
from vtokens.host import errors, paths

# Answers of boolq and their meanings.
_TRUTHS = {'yes': 'true', 'true': 'true', 'no': 'false', 'false': 'false'}
# Streams of random numbers derived from one seed.
_QUESTIONS, _SHOTS = 11, 12
_MAX_TEXT_BYTES = 1 << 20
# A number as people write it: -3, $1,234.50, .5
_NUMBER = re.compile(
  r'(?P<sign>[-−])?\s?\$?\s?'
  r'(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
  """A question of a general task.

  Attributes:
    id: unique in its file.
    text: the question.
    choices: the options; true and false for boolq, none for gsm8k.
    answers: the right choices, or numbers.
    rationale: the steps to the answer; '' if the file gives none.
    passages: titles and texts; none if the file gives none.
    topic: subject of mmlu, question type of commonsenseqa; '' if the file
      gives none.
  """

  id: str
  text: str
  choices: tuple[str, ...]
  answers: tuple[str, ...]
  rationale: str
  passages: tuple[str, ...]
  topic: str


@dataclasses.dataclass(frozen=True)
class DrawnQuestions:
  """The questions of a task and their examples.

  Attributes:
    questions: in the order of the file.
    examples: solved questions to show before a question, by topic; under ''
      those for questions of every topic.
    notes: what was left out and why, a sentence each.
  """

  questions: Sequence[Question]
  examples: Mapping[str, Sequence[Question]]
  notes: Sequence[str]

  def shots(self, question: Question) -> Sequence[Question]:
    """The examples to show before a question."""
    return self.examples.get(question.topic, self.examples.get('', ()))


def draw(task: Task, seed: int) -> DrawnQuestions:
  """Reads the files of a task and draws its questions and examples.

  Both draws depend on the seed and the files alone.

  Args:
    task: its settings, checked.
    seed: of the draws.

  Raises:
    errors.UserError: a file cannot be read, a line is bad, or there are too
      few examples.
  """
  everything = read_questions(paths.resolve(task.source), task.format)
  questions, notes = everything, []
  if 0 < task.max_questions < len(everything):
    drawn = draw_some(len(everything), task.max_questions, seed)
    questions = [everything[i] for i in drawn]
    notes.append(
      f'{len(questions):,} of {len(everything):,} questions, drawn by the seed '
      '(max_questions)'
    )
  if not task.shots:
    return DrawnQuestions(questions, {}, notes)
  pool, leaks = _without_leaks(
    read_questions(paths.resolve(task.shots_source), task.format, solved=True),
    everything,
  )
  if leaks:
    notes.append(
      f'{leaks:,} of the questions in {task.shots_source} are no shots: they '
      'are asked in the source too'
    )
  asked = {''}
  if any(example.topic for example in pool):
    asked = {question.topic for question in questions}
  examples = {
    topic: _draw_shots(task, topic, pool, seed) for topic in sorted(asked)
  }
  return DrawnQuestions(questions, examples, notes)


def draw_some(total: int, most: int, seed: int) -> list[int]:
  """Numbers of `most` of all questions, ascending."""
  rng = np.random.default_rng([seed, _QUESTIONS])
  return sorted(rng.choice(total, most, replace=False).tolist())


def read_questions(
  path: str, format: str, *, solved: bool = False
) -> list[Question]:
  """Reads a file of questions.

  Args:
    path: the file.
    format: see `Task`; it decides what a question needs.
    solved: whether they will be shown with their solutions, so that gsm8k
      needs the rationale.

  Raises:
    errors.UserError: with file, line and key.
  """
  questions: dict[str, Question] = {}
  places: dict[str, str] = {}
  for row in files.rows(path, files.shape(path)):
    try:
      if isinstance(row.value, BadRecord):
        raise row.value
      fields = RowFields(row.value, '', _MAX_TEXT_BYTES)
      question = _READERS[format](fields)
      if solved and format == 'gsm8k' and not question.rationale:
        raise fields.missing('rationale')
      if question.id in questions:
        raise BadRecord(
          Kind.DUPLICATE_ID,
          f'id: found {question.id!r} for the second time, first in '
          f'{places[question.id]}, expected it once',
        )
    except BadRecord as e:
      raise errors.UserError(f'{row.place}: {e}') from None
    questions[question.id], places[question.id] = question, row.place
  if not questions:
    raise errors.UserError(f'{path}: no question in it, expected at least one')
  return list(questions.values())


def number(text: str) -> float | None:
  """The first number in a text; None if there is none."""
  found = _NUMBER.search(text)
  if found is None:
    return None
  value = float(found['digits'].replace(',', ''))
  return -value if found['sign'] else value


def _question(
  fields: RowFields,
  *,
  choices: Sequence[str] = (),
  answers: Sequence[str],
  topic: str = '',
) -> Question:
  return Question(
    id=fields.id('id'),
    text=fields.text('question').strip(),
    choices=tuple(choices),
    answers=tuple(answers),
    rationale=' '.join(fields.text('rationale', '').split()),
    passages=_passages(fields),
    topic=topic,
  )


def _boolq(fields: RowFields) -> Question:
  for key in ('choices', 'answers'):
    for i, text in enumerate(fields.texts(key) if key in fields else ()):
      if text.lower() not in _TRUTHS:
        raise BadRecord(
          Kind.MALFORMED,
          f'{key}[{i}]: found {text!r}, expected one of {", ".join(_TRUTHS)}',
        )
  answers = {_TRUTHS[answer.lower()] for answer in fields.texts('answers')}
  if len(answers) > 1:
    raise BadRecord(
      Kind.MALFORMED, 'answers: found both true and false, expected one'
    )
  return _question(fields, choices=('true', 'false'), answers=tuple(answers))


def _choice(fields: RowFields, topic: str) -> Question:
  choices, answers = fields.texts('choices'), fields.texts('answers')
  most = len(string.ascii_uppercase)
  if not 2 <= len(choices) <= most:
    raise BadRecord(
      Kind.MALFORMED,
      f'choices: found {len(choices)}, expected 2 to {most}',
    )
  for i, answer in enumerate(answers):
    if answer not in choices:
      raise BadRecord(
        Kind.MALFORMED,
        f'answers[{i}]: found {answer!r}, expected one of the choices',
      )
  return _question(
    fields, choices=choices, answers=answers, topic=fields.text(topic, '')
  )


def _gsm8k(fields: RowFields) -> Question:
  answers = fields.texts('answers')
  for i, answer in enumerate(answers):
    if number(answer) is None:
      raise BadRecord(
        Kind.MALFORMED, f'answers[{i}]: found {answer!r}, expected a number'
      )
  return _question(fields, answers=answers)


_READERS = {
  'boolq': _boolq,
  'commonsenseqa': lambda fields: _choice(fields, 'question_type'),
  'mmlu': lambda fields: _choice(fields, 'subject'),
  'gsm8k': _gsm8k,
}


def _passages(fields: RowFields) -> tuple[str, ...]:
  """Each as its title, if it has one, and below it its text."""
  if 'passages' not in fields:
    return ()
  texts = []
  for name, value in fields.items('passages', 'passages'):
    if isinstance(value, str):
      texts.append(fields.check_text(value, name, blank=True))
      continue
    passage = fields.part(value, name)
    title, text = passage.text('title', ''), passage.body('text')
    # As in other data, one without a text is left out.
    texts.append(f'{title}\n{text}' if title and text.strip() else text)
  return tuple(text for text in texts if text.strip())


def _without_leaks(
  pool: Sequence[Question], asked: Iterable[Question]
) -> tuple[list[Question], int]:
  """Examples whose question is not asked, and the number of the others."""
  known = {_normal(question.text) for question in asked}
  kept = [example for example in pool if _normal(example.text) not in known]
  return kept, len(pool) - len(kept)


def _normal(text: str) -> str:
  return ' '.join(re.sub(r'\W+', ' ', text.lower()).split())


def _draw_shots(
  task: Task, topic: str, pool: Sequence[Question], seed: int
) -> list[Question]:
  fitting = [e for e in pool if not topic or e.topic == topic]
  if len(fitting) < task.shots:
    about = f' about {topic!r}' if topic else ''
    raise errors.UserError(
      f'{task.shots_source}: {task.shots} shots asked for, but it has only '
      f'{len(fitting)} questions{about} that are not asked in {task.source}'
    )
  rng = np.random.default_rng([seed, _SHOTS, *topic.encode()])
  drawn = rng.choice(len(fitting), task.shots, replace=False)
  return [fitting[i] for i in drawn]
