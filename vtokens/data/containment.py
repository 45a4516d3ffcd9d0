"""Whether passages hold an answer, as DPR counts it.

The rule of Karpukhin et al., 2020 (arXiv 2004.04906; `has_answer` with match
type `string` in the code of DPR): text and answer are brought to Unicode's
NFD and lower case and cut into tokens, each a run of letters, digits and
marks, or another character that is neither a separator nor a control
character; an answer is contained if its tokens occur in a row. Titles do not
count. This is not the normalisation of exact match: articles and punctuation
stay.

DPR's texts are English. In a text that is written without spaces
(`unspaced.is_written`) each character, with its marks, is a token here, and
full-width forms count as normal ones.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import regex

from vtokens.data import records
from vtokens.scoring import unspaced

_TOKEN = regex.compile(r'[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]')
_UNSPACED_TOKEN = regex.compile(
  rf'{unspaced.CHARACTER}|{unspaced.OTHER_WORD}|[^\p{{Z}}\p{{C}}]', regex.V1
)


class Matcher:
  """Looks for the answers to one question.

  Args:
    answers: any one counts.
  """

  def __init__(self, answers: Iterable[str]):
    self._answers = list(answers)
    self._tokens: dict[bool, list[tuple[str, str]]] = {}

  def contains(self, text: str) -> bool:
    """Whether a text contains an answer."""
    by_character = unspaced.is_written(text)
    text = _fold(text, by_character)
    # Cutting into tokens is slow, and most texts lack the longest token.
    candidates = [
      joined
      for token, joined in self._tokens_of_answers(by_character)
      if token in text
    ]
    if not candidates:
      return False
    joined_text = _join(_cut(text, by_character))
    return any(joined in joined_text for joined in candidates)

  def _tokens_of_answers(self, by_character: bool) -> list[tuple[str, str]]:
    """Of each answer the longest token, and all of them."""
    if by_character not in self._tokens:
      tokens = [
        _cut(_fold(answer, by_character), by_character)
        for answer in self._answers
      ]
      self._tokens[by_character] = [
        (max(t, key=len), _join(t)) for t in tokens if t
      ]
    return self._tokens[by_character]

  def first(self, passages: Iterable[records.Passage]) -> int:
    """The rank from 1 on of the first passage with an answer; 0 for none."""
    for rank, passage in enumerate(passages, start=1):
      if self.contains(passage.text):
        return rank
    return 0


def _fold(text: str, by_character: bool) -> str:
  if by_character:
    text = unspaced.fold_width(text)
  return unicodedata.normalize('NFD', text).lower()


def _cut(text: str, by_character: bool) -> list[str]:
  return (_UNSPACED_TOKEN if by_character else _TOKEN).findall(text)


def _join(tokens: Sequence[str]) -> str:
  # No token holds a space: a match of strings is a match of whole tokens.
  return f' {" ".join(tokens)} '
