"""Exact match and token F1 as SQuAD 1.1 defines them.

Source: the official SQuAD 1.1 evaluation script (evaluate-v1.1.py), described
in Rajpurkar et al., 2016, arXiv 1606.05250, section 6.1.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_DROP_PUNCTUATION = str.maketrans('', '', string.punctuation)


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
  """Means over a set of questions, not rounded.

  Attributes:
    em: exact match in percent, 0 to 100.
    f1: token F1 in percent, 0 to 100.
    n: the number of questions.
  """

  em: float
  f1: float
  n: int

  def as_dict(self) -> dict[str, float]:
    """Returns {'em', 'f1', 'n'}, for writers and reports."""
    return dataclasses.asdict(self)


def normalize_answer(text: str) -> str:
  """Lowers case, drops ASCII punctuation and articles, joins words by a space.

  The order is the official script's and matters: punctuation goes first and
  leaves nothing behind, so 'a.b' becomes the word 'ab' and not 'b'. Curly
  quotes and Unicode dashes are not in `string.punctuation` and stay.

  Args:
    text: any text.

  Returns:
    The normalised text, possibly empty.
  """
  text = text.lower().translate(_DROP_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """Whether the normalised prediction equals any normalised answer.

  Args:
    prediction: what the model said.
    answers: the accepted answers, at least one.

  Returns:
    1.0 or 0.0.

  Raises:
    TypeError: if `answers` is one string.
    ValueError: if `answers` is empty.
  """
  return _best(_exact_match_one, prediction, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the prediction's words and those of an answer.

  F1 = 2PR / (P + R) over the two bags of normalised words. As in the official
  script it is 0 where no word is shared, even if both bags are empty (where
  exact match is 1).

  Args:
    prediction: what the model said.
    answers: the accepted answers, at least one.

  Returns:
    The maximum over the answers, 0.0 to 1.0.

  Raises:
    TypeError: if `answers` is one string.
    ValueError: if `answers` is empty.
  """
  return _best(_token_f1_one, prediction, answers)


def score(
  predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> Scores:
  """Averages exact match and token F1 over questions.

  Args:
    predictions: one prediction per question.
    answers: the accepted answers of each question, in the same order.

  Returns:
    The means in percent.

  Raises:
    TypeError: if the answers of a question are one string.
    ValueError: if there are no questions, a question has no answers, or the
      two sequences differ in length.
  """
  if len(predictions) != len(answers):
    raise ValueError(
      f'{len(predictions)} predictions for {len(answers)} questions: '
      'expected one prediction per question'
    )
  if not predictions:
    raise ValueError('0 predictions: the mean over no question is undefined')
  pairs = list(zip(predictions, answers, strict=True))
  n = len(pairs)
  return Scores(
    em=100.0 * sum(exact_match(p, a) for p, a in pairs) / n,
    f1=100.0 * sum(token_f1(p, a) for p, a in pairs) / n,
    n=n,
  )


def _exact_match_one(prediction: str, answer: str) -> float:
  return float(normalize_answer(prediction) == normalize_answer(answer))


def _token_f1_one(prediction: str, answer: str) -> float:
  predicted = normalize_answer(prediction).split()
  expected = normalize_answer(answer).split()
  shared = collections.Counter(predicted) & collections.Counter(expected)
  num_shared = shared.total()
  if num_shared == 0:
    return 0.0
  precision = num_shared / len(predicted)
  recall = num_shared / len(expected)
  return 2 * precision * recall / (precision + recall)


def _best(
  metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]
) -> float:
  # A string is a sequence of strings too: its letters would be the answers.
  if isinstance(answers, str):
    raise TypeError(f'answers is the string {answers!r}, expected a list of it')
  if not answers:
    raise ValueError('answers is empty, expected at least one')
  return max(metric(prediction, answer) for answer in answers)
