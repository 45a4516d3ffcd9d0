"""What the task files in configs/tasks/ need: data, examples, numbers.

It needs the extra `lm-eval`. `lm_eval --tasks configs/tasks/mmlu.yaml` runs a
task on any model, with `--metadata '{"source": "questions.jsonl"}'`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.samplers import ContextSampler

from vtokens.evaluation.harness import question_files
from vtokens.evaluation.harness.question_files import Question
from vtokens.evaluation.tasks import Task, check_task

# Before the final number of gsm8k.
_MARKER = 'The answer is:'
_TEXT, _NUMBER = datasets.Value('string'), datasets.Value('int64')
_QUESTION = {
  'id': _TEXT,
  'question': _TEXT,
  'choices': [_TEXT],
  'answers': [_TEXT],
  'solution': _TEXT,
  'passages': [_TEXT],
  'topic': _TEXT,
  'gold_index': _NUMBER,
  'gold_indices': [_NUMBER],
}
_FEATURES = {**_QUESTION, 'shots': [_QUESTION]}


class Splits(dict[str, datasets.Dataset]):
  """Split -> its questions.

  Attributes:
    notes: what was left out and why, a sentence each.
  """

  notes: Sequence[str] = ()


def dataset(
  *,
  source: str,
  format: Any,
  shots: int = 0,
  shots_source: str = '',
  max_questions: int = 0,
  seed: int = 0,
  **unused: Any,
) -> Splits:
  """The questions of a file, each with the examples to show before it.

  Args:
    source: see `Task`, likewise the next ones.
    format: of the file.
    shots: examples before a question.
    shots_source: file of the examples.
    max_questions: most questions.
    seed: of both draws.
    **unused: other metadata of the task.

  Raises:
    errors.UserError: the settings contradict themselves, or a file is bad.
  """
  task = Task(source, format, shots, shots_source, max_questions)
  check_task('paper', task)
  drawn = question_files.draw(task, seed)
  rows = [
    {**_row(question), 'shots': [_row(shot) for shot in drawn.shots(question)]}
    for question in drawn.questions
  ]
  found = Splits(
    test=datasets.Dataset.from_list(rows, datasets.Features(_FEATURES))
  )
  found.notes = drawn.notes
  return found


def _row(question: Question) -> dict[str, Any]:
  gold = [
    i for i, choice in enumerate(question.choices) if choice in question.answers
  ]
  first = question.answers[0]
  return {
    'id': question.id,
    'question': question.text,
    'choices': list(question.choices),
    'answers': list(question.answers),
    'solution': f'{question.rationale} {_MARKER} {first}',
    'passages': list(question.passages),
    'topic': question.topic,
    'gold_index': question.choices.index(first) if gold else -1,
    'gold_indices': gold,
  }


class OwnShots(ContextSampler):
  """Shows each question the examples that its row has."""

  def sample(
    self,
    n: int,
    eval_doc: dict[str, Any] | None = None,
    df: Any = None,
    **unused: Any,
  ) -> Sequence[dict[str, Any]]:
    """The first `n` examples of a question."""
    assert eval_doc is not None
    shots: Sequence[dict[str, Any]] = eval_doc['shots'][:n]
    return shots


def number_results(
  doc: Mapping[str, Any], results: Sequence[str]
) -> dict[str, Any]:
  """Whether an answer of gsm8k is right."""
  return {'acc': is_right(final_number(results[0]), doc['answers'])}


def final_number(text: str) -> float | None:
  """The number after the last 'The answer is:'; None if there is none."""
  _, marker, after = text.rpartition(_MARKER)
  return question_files.number(after) if marker else None


def is_right(value: float | None, answers: Sequence[str]) -> bool:
  """Whether a number equals one of the answers."""
  golds = [question_files.number(answer) for answer in answers]
  return value is not None and any(
    gold is not None and math.isclose(value, gold, rel_tol=1e-9)
    for gold in golds
  )


def left_out(format: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """A note on the line of the paper's prompt that some questions lack."""
  line, field = {
    'boolq': ("'Passage:' and the mention of passages", 'passages'),
    'commonsenseqa': ("'Please the following question about'", 'topic'),
    'mmlu': ("'The following are multiple choice questions about'", 'topic'),
    'gsm8k': ('', 'id'),
  }[format]
  count = sum(not row[field] for row in rows)
  if not count:
    return []
  return [
    f'{count:,} of {len(rows):,} prompts are without the line {line}: the data '
    'do not say what belongs there'
  ]
