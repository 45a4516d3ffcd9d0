"""Tells whether a passage contains an answer, by the rule of DPR.

The rule of Karpukhin et al., 2020 (arXiv 2004.04906; `has_answer` with match
type `string` in DPR's code): text and answer are normalised to Unicode NFD and
lower case, and cut into tokens. A token is a run of letters, digits and marks,
or another character that is neither a separator nor a control character. A text
contains an answer if the answer's tokens occur in it in a row. Titles do not
count. Unlike in exact match, articles and punctuation stay.

DPR's texts are English. In text written without spaces (`unspaced.is_written`)
each character with its marks is a token, and full-width forms equal normal
ones.
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
  """Finds the answers to one question in texts.

  Args:
    answers: accepted answers.
  """

  def __init__(self, answers: Iterable[str]):
    self._answers = list(answers)
    self._tokens: dict[bool, list[tuple[str, str]]] = {}

  def contains(self, text: str) -> bool:
    """Whether a text contains any of the answers."""
    by_character = unspaced.is_written(text)
    text = _fold(text, by_character)
    # Cutting into tokens is slow, and most texts lack even the longest token.
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
    """The longest token of each answer, and all of its tokens, joined."""
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
    """Rank, from 1, of the first passage with an answer; 0 if none has one."""
    for rank, passage in enumerate(passages, start=1):
      if self.contains(passage.text):
        return rank
    return 0


def _fold(text: str, by_character: bool) -> str:
  if by_character:
    text = unspaced.fold_width(text)
  return unicodedata.normalize('NFD', text).lower()


def _cut(text: str, by_character: bool) -> list[str]:
  pattern = _UNSPACED_TOKEN if by_character else _TOKEN
  tokens: list[str] = pattern.findall(text)
  return tokens


def _join(tokens: Sequence[str]) -> str:
  # Tokens have no spaces, so a match of strings is a match of whole tokens.
  return f' {" ".join(tokens)} '
