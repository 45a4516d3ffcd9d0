"""How well a prediction agrees with the accepted answers.

Exact match and token F1 are those of SQuAD 1.1; source: the official SQuAD 1.1
evaluation script (evaluate-v1.1.py), described in Rajpurkar et al., 2016, arXiv
1606.05250, section 6.1. Answers that are not plain text, as patterns or
numbers, have rules of their own: see `vtokens.scoring.answer_rules`.

Two kinds of text, which SQuAD 1.1 does not have, are compared otherwise:

- An accepted answer of nothing but articles and punctuation, such as 'A' or
  'The The': the articles of answer and prediction stay. Of an answer of
  nothing but punctuation, such as '+', the punctuation stays too.
- Where prediction or answer is written without spaces (`unspaced.is_written`),
  both are compared by characters: see `normalize_unspaced`.
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


def normalize_unspaced(text: str) -> str:
  """Normalises text of scripts without spaces; each character is a word.

  Full-width letters and digits become normal, case is lowered, punctuation of
  ASCII and of Unicode (categories P*) goes. Articles stay: the A of
  '维生素A' is none. MLQA compares Chinese in this way (Lewis et al., 2020,
  arXiv 1910.07475, and its `mlqa_evaluation_v1.py`); other scripts and widths
  are added here.

  Args:
    text: any text.

  Returns:
    The words, joined by a space; possibly empty.
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
    # Its spaces are not in the text.
    said, gold = said.replace(' ', ''), gold.replace(' ', '')
  return METRICS[name](said, gold)


def _rule(prediction: str, answer: str) -> Callable[[str], str]:
  """How a prediction and an accepted answer are normalised to be compared."""
  if unspaced.is_written(prediction) or unspaced.is_written(answer):
    rules = [normalize_unspaced, _keep_all]
  else:
    rules = [normalize_answer, _keep_articles, _keep_all]
  # Of a blank answer nothing is left by any rule.
  return next((rule for rule in rules if rule(answer)), rules[0])


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """Whether the normalised prediction equals any normalised answer.

  Args and Raises: see `text_scores`.

  Returns:
    1.0 or 0.0.
  """
  return text_scores(prediction, answers, ['em'])['em']


def token_f1(prediction: str, answers: Sequence[str]) -> float:
  """The best F1 between the prediction's words and those of an answer.

  F1 = 2PR / (P + R) over the two bags of normalised words; 0 where no word is
  shared, as in the official script.

  Args and Raises: see `text_scores`.

  Returns:
    The maximum over the answers, 0.0 to 1.0.
  """
  return text_scores(prediction, answers, ['f1'])['f1']


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
