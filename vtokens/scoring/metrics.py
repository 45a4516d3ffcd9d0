"""Metrics of a prediction against accepted answers.

Exact match and token F1 follow SQuAD 1.1: its official evaluation script
(evaluate-v1.1.py), described in Rajpurkar et al., 2016, arXiv 1606.05250,
section 6.1. `vtokens.evaluation.answer_rules` compares other answers, such as
patterns and numbers.

Two kinds of text that SQuAD 1.1 lacks are compared differently:

- If an accepted answer has only articles and punctuation ('A', 'The The'), the
  articles of answer and prediction stay. If it has only punctuation ('+'), the
  punctuation stays too.
- If prediction or answer is written without spaces (`unspaced.is_written`),
  both are compared by characters; see `normalize_unspaced`.
"""

import collections
import dataclasses
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import regex

from vtokens.scoring import unspaced

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_DROP_PUNCTUATION = str.maketrans('', '', string.punctuation)
_UNICODE_PUNCTUATION = regex.compile(r'\p{P}')


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

  The order is the official script's and matters: punctuation is dropped first,
  so 'a.b' becomes the word 'ab', not 'b'. Curly quotes and Unicode dashes are
  not in `string.punctuation` and stay. The result may be empty.
  """
  text = text.lower().translate(_DROP_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def normalize_unspaced(text: str) -> str:
  """Normalises text of scripts without spaces; each character is a word.

  Makes full-width letters and digits normal, lowers case, drops punctuation of
  ASCII and Unicode (categories P*), and joins words by a space. Articles stay:
  the A of '维生素A' is none. MLQA compares Chinese like this (Lewis et al.,
  2020, arXiv 1910.07475, `mlqa_evaluation_v1.py`); other scripts and widths are
  added here. The result may be empty.
  """
  text = unicodedata.normalize('NFC', unspaced.fold_width(text)).lower()
  text = _UNICODE_PUNCTUATION.sub('', text.translate(_DROP_PUNCTUATION))
  return ' '.join(unspaced.words(text))


def _keep_articles(text: str) -> str:
  return ' '.join(text.lower().translate(_DROP_PUNCTUATION).split())


def _keep_all(text: str) -> str:
  return ' '.join(text.lower().split())


def text_scores(
  prediction: str, answers: Sequence[str], names: Iterable[str]
) -> dict[str, float]:
  """Computes metrics of a prediction, each the best over the answers.

  Args:
    prediction: the model's text.
    answers: accepted answers, at least one.
    names: names of `METRICS`.

  Returns:
    Values by name, 0.0 to 1.0. Different answers may be best for different
    metrics.

  Raises:
    TypeError: `answers` is one string.
    ValueError: `answers` is empty.
  """
  # A string is also a sequence of strings: its letters would be the answers.
  if isinstance(answers, str):
    raise TypeError(f'answers is the string {answers!r}, expected a list of it')
  if not answers:
    raise ValueError('answers is empty, expected at least one')
  rules = [_rule(prediction, answer) for answer in answers]
  said = {rule: rule(prediction) for rule in dict.fromkeys(rules)}
  golds = [
    (rule, rule(answer)) for rule, answer in zip(rules, answers, strict=True)
  ]
  return {
    name: max(_value(name, rule, said[rule], gold) for rule, gold in golds)
    for name in names
  }


def _value(
  name: str, rule: Callable[[str], str], said: str, gold: str
) -> float:
  if name == 'char_f1' and rule is normalize_unspaced:
    # `normalize_unspaced` added the spaces.
    said, gold = said.replace(' ', ''), gold.replace(' ', '')
  return METRICS[name](said, gold)


def _rule(prediction: str, answer: str) -> Callable[[str], str]:
  """Chooses the normalisation for a prediction and an accepted answer."""
  if unspaced.is_written(prediction) or unspaced.is_written(answer):
    rules = [normalize_unspaced, _keep_all]
  else:
    rules = [normalize_answer, _keep_articles, _keep_all]
  # No rule leaves anything of a blank answer.
  return next((rule for rule in rules if rule(answer)), rules[0])


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """Whether the normalised prediction equals any normalised answer.

  Args and Raises: see `text_scores`.

  Returns:
    1.0 or 0.0.
  """
  return text_scores(prediction, answers, ['em'])['em']


def token_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the words of the prediction and of an answer.

  F1 = 2PR / (P + R) over the two bags of normalised words; 0 if they share
  none, as in the official script.

  Args and Raises: see `text_scores`.

  Returns:
    The maximum over the answers, 0.0 to 1.0.
  """
  return text_scores(prediction, answers, ['f1'])['f1']


def char_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the characters of the prediction and of an answer.

  Like `token_f1`, over the characters of the normalised texts with the spaces
  between words. Wrong answers get about a third. Its only purpose is to compare
  with the F1 of the SPRING paper (arXiv 2405.19670), whose values look like
  this. That is a guess: the paper does not define its F1.

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
    answers: accepted answers of each question, in the same order.

  Returns:
    The means in percent.

  Raises:
    TypeError: the answers of a question are one string.
    ValueError: there are no questions, a question has no answers, or the two
      sequences differ in length.
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
  """F1 of two bags of words or characters; 0 if they share nothing."""
  shared = collections.Counter(predicted) & collections.Counter(expected)
  num_shared = shared.total()
  if num_shared == 0:
    return 0.0
  precision = num_shared / len(predicted)
  recall = num_shared / len(expected)
  return 2 * precision * recall / (precision + recall)


# Functions of a normalised prediction and a normalised answer.
METRICS: Mapping[str, Callable[[str, str], float]] = {
  'em': lambda said, gold: float(said == gold),
  'f1': lambda said, gold: _bag_f1(said.split(), gold.split()),
  # Words have no spaces, so a match of strings is a match of whole words.
  'contains': lambda said, gold: float(f' {gold} ' in f' {said} '),
  'char_f1': _bag_f1,
}
