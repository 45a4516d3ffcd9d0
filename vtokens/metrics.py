"""How well a prediction agrees with the accepted answers.

Exact match and token F1 are those of SQuAD 1.1; source: the official SQuAD 1.1
evaluation script (evaluate-v1.1.py), described in Rajpurkar et al., 2016, arXiv
1606.05250, section 6.1. Answers that are not plain text, as patterns or
numbers, have rules of their own: see `vtokens.evaluation.rules`.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

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


def text_scores(
  prediction: str, answers: Sequence[str], names: Iterable[str]
) -> dict[str, float]:
  """Several metrics of one prediction, each the best over the answers.

  Args:
    prediction: what the model said.
    answers: the accepted answers, at least one.
    names: of `METRICS`.

  Returns:
    Name -> value, 0.0 to 1.0; the answer that is best for one metric need not
    be so for another.

  Raises:
    TypeError: if `answers` is one string.
    ValueError: if `answers` is empty.
  """
  # A string is a sequence of strings too: its letters would be the answers.
  if isinstance(answers, str):
    raise TypeError(f'answers is the string {answers!r}, expected a list of it')
  if not answers:
    raise ValueError('answers is empty, expected at least one')
  said = normalize_answer(prediction)
  golds = [normalize_answer(answer) for answer in answers]
  return {
    name: max(METRICS[name](said, gold) for gold in golds) for name in names
  }


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """Whether the normalised prediction equals any normalised answer.

  Args and Raises: see `text_scores`.

  Returns:
    1.0 or 0.0.
  """
  return text_scores(prediction, answers, ['em'])['em']


def token_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the prediction's words and those of an answer.

  F1 = 2PR / (P + R) over the two bags of normalised words. As in the official
  script it is 0 where no word is shared, even if both bags are empty (where
  exact match is 1).

  Args and Raises: see `text_scores`.

  Returns:
    The maximum over the answers, 0.0 to 1.0.
  """
  return text_scores(prediction, answers, ['f1'])['f1']


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
  """Whether the words of any answer stand in a row in the prediction.

  Both are normalised first. FlashRAG's `acc` asks for a substring of the
  normalised text instead, so that 'no' is contained in 'nobody' and an answer
  of articles alone in everything; here 'no' is not, and an answer without
  words is contained only in a prediction without any. Exact match therefore
  never exceeds this.

  Args and Raises: see `text_scores`.

  Returns:
    1.0 or 0.0.
  """
  return text_scores(prediction, answers, ['contains'])['contains']


def char_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the characters of the prediction and of an answer.

  As `token_f1`, over the characters of the normalised texts, spaces between
  words included. Wrong answers get about a third: it is here for one purpose,
  to stand beside the F1 of the SPRING paper (arXiv 2405.19670), whose values
  look like this. That is a guess; the paper defines none.

  Args and Raises: see `text_scores`.

  Returns:
    The maximum over the answers, 0.0 to 1.0.
  """
  return text_scores(prediction, answers, ['char_f1'])['char_f1']


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


def _bag_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
  """F1 of two bags of words, or of characters; 0 where nothing is shared."""
  shared = collections.Counter(predicted) & collections.Counter(expected)
  num_shared = shared.total()
  if num_shared == 0:
    return 0.0
  precision = num_shared / len(predicted)
  recall = num_shared / len(expected)
  return 2 * precision * recall / (precision + recall)


# Of a normalised prediction and one normalised answer.
METRICS: Mapping[str, Callable[[str, str], float]] = {
  'em': lambda said, gold: float(said == gold),
  'f1': lambda said, gold: _bag_f1(said.split(), gold.split()),
  # No word holds a space: a match of strings is a match of whole words.
  'contains': lambda said, gold: float(f' {gold} ' in f' {said} '),
  'char_f1': _bag_f1,
}
