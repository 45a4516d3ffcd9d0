"""Rules that compare answers, by the kind of answers of a dataset.

text: SQuAD 1.1's rules; see `vtokens.scoring.metrics`.

regex: accepted answers are regular expressions of Python, as in CuratedTREC.
  Case does not count. White space around the prediction is dropped; it is not
  normalised, since patterns may ask for punctuation. EM: a pattern matches the
  whole prediction, perhaps without a full stop at the end. Containment: a
  pattern matches somewhere.

number: each accepted answer has one number, and perhaps a unit. EM: the
  prediction has exactly this number, and no word that the answer lacks.
  Containment: the prediction has this number, whatever its words. Numbers are
  defined in `vtokens.scoring.numbers`.

yes_no: accepted answers are yes or true, no or false. The first word of the
  normalised prediction counts; if it is none of these, the prediction is wrong.

Under regex, number and yes_no, F1 is EM: there are no words to share. Under
yes_no containment is EM too.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from vtokens.data.records import Record
from vtokens.host import errors
from vtokens.scoring import metrics, numbers

Rule = Literal['text', 'regex', 'number', 'yes_no']
RULES: tuple[Rule, ...] = typing.get_args(Rule)

_MEANING = {'yes': True, 'true': True, 'no': False, 'false': False}


def check_answers(rule: str, records: Sequence[Record]) -> None:
  """Checks that accepted answers are of the kind that a rule compares.

  Args:
    rule: one of `RULES`.
    records: the questions.

  Raises:
    errors.UserError: one is not; the message names record, dataset and answer.
    ValueError: there is no such rule.
  """
  problem_of = _get(rule).problem
  for record in records:
    problem = problem_of(record.answers)
    if problem:
      raise errors.UserError(
        f'dataset {record.dataset}, record {record.id}: {problem}. Its '
        f'answers are compared by the rule {rule}; correct the record, or '
        f'choose another rule for the dataset ({", ".join(RULES)})'
      )


def score_questions(
  rule: str,
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  *,
  char_f1: bool = False,
) -> dict[str, Float[np.ndarray, 'n']]:
  """Scores each question.

  Args:
    rule: one of `RULES`.
    predictions: one prediction per question.
    answers: accepted answers of each question, in the same order, which
      `check_answers` has passed; none for a question without an answer.
    char_f1: whether to add `metrics.char_f1`. Under regex it is EM; other rules
      compare the answers as text.

  Returns:
    For em, f1, contains and perhaps char_f1 the value of each question, 0 to 1,
    or NaN for a question without an answer; float64 array of shape [n].

  Raises:
    ValueError: the two differ in length, or there is no such rule.
  """
  if len(predictions) != len(answers):
    raise ValueError(
      f'{len(predictions)} predictions for {len(answers)} questions: '
      'expected one prediction per question'
    )
  score = _get(rule).score
  names = ('em', 'f1', 'contains', *(('char_f1',) if char_f1 else ()))
  rows = [
    score(prediction, golds, names) if golds else dict.fromkeys(names, np.nan)
    for prediction, golds in zip(predictions, answers, strict=True)
  ]
  return {
    name: np.array([row[name] for row in rows], np.float64) for name in names
  }


def _text_problem(answers: Sequence[str]) -> str:
  del answers  # Any text will do.
  return ''


def _score_regex(
  prediction: str, answers: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
  text = prediction.strip()
  patterns = [re.compile(answer, re.IGNORECASE) for answer in answers]
  em = any(
    pattern.fullmatch(text) or pattern.fullmatch(text.removesuffix('.'))
    for pattern in patterns
  )
  # A pattern for the end of the text may match only without the full stop, as
  # EM does.
  contains = em or any(pattern.search(text) for pattern in patterns)
  return {name: float(contains if name == 'contains' else em) for name in names}


def _regex_problem(answers: Sequence[str]) -> str:
  for answer in answers:
    try:
      pattern = re.compile(answer, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as e:
      return f'answer {answer!r} is not a regular expression: {e}'
    if pattern.search(''):
      return (
        f'answer {answer!r} matches the empty text, so that any prediction '
        'would contain it'
      )
  return ''


def _score_number(
  prediction: str, answers: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
  said, words = numbers.parse(prediction)
  golds = [numbers.parse(answer) for answer in answers]
  em = any(said == gold and words <= unit for gold, unit in golds)
  contains = any(gold[0] in said for gold, _ in golds)
  return _with_char_f1(prediction, answers, names, em, contains)


def _number_problem(answers: Sequence[str]) -> str:
  for answer in answers:
    found, _ = numbers.parse(answer)
    if len(found) != 1:
      return f'answer {answer!r} has {len(found)} numbers in it, expected one'
  return ''


def _score_yes_no(
  prediction: str, answers: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
  first = metrics.normalize_answer(prediction).split(' ')[0]
  golds = {_MEANING[metrics.normalize_answer(answer)] for answer in answers}
  em = _MEANING.get(first) in golds
  return _with_char_f1(prediction, answers, names, em, em)


def _yes_no_problem(answers: Sequence[str]) -> str:
  found = set()
  for answer in answers:
    meaning = _MEANING.get(metrics.normalize_answer(answer))
    if meaning is None:
      return f'answer {answer!r} is none of yes, true, no, false'
    found.add(meaning)
  return 'both yes and no are accepted' if len(found) > 1 else ''


def _with_char_f1(
  prediction: str,
  answers: Sequence[str],
  names: Sequence[str],
  em: bool,
  contains: bool,
) -> dict[str, float]:
  values = {'em': float(em), 'f1': float(em), 'contains': float(contains)}
  if 'char_f1' in names:
    values['char_f1'] = metrics.char_f1(prediction, answers)
  return values


@dataclasses.dataclass(frozen=True)
class _Rule:
  """A rule.

  Attributes:
    score: (prediction, accepted answers, names of metrics) -> their values.
    problem: accepted answers -> what is wrong with them; '' for nothing.
  """

  score: Callable[[str, Sequence[str], Sequence[str]], dict[str, float]]
  problem: Callable[[Sequence[str]], str]


_RULES = {
  'text': _Rule(metrics.text_scores, _text_problem),
  'regex': _Rule(_score_regex, _regex_problem),
  'number': _Rule(_score_number, _number_problem),
  'yes_no': _Rule(_score_yes_no, _yes_no_problem),
}


def _get(rule: str) -> _Rule:
  if rule not in _RULES:
    raise ValueError(f'rule {rule!r}: expected one of {", ".join(RULES)}')
  return _RULES[rule]
