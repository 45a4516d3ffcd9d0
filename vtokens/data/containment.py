"""Whether passages hold an answer, as DPR counts it.

The rule of Karpukhin et al., 2020 (arXiv 2004.04906; `has_answer` with match
type `string` in the code of DPR): text and answer are brought to Unicode's
NFD and lower case and cut into tokens, each a run of letters, digits and
marks, or another character that is neither a separator nor a control
character; an answer is contained if its tokens occur in a row. Titles do not
count. This is not the normalisation of exact match: articles and punctuation
stay.

DPR's texts are English. Of scripts that are written without spaces each
character, with its marks, is a token here, and full-width forms count as normal
ones: see `vtokens.unspaced`.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import regex

from vtokens import unspaced
from vtokens.data import records

_TOKEN = regex.compile(
  rf'{unspaced.CHARACTER}|{unspaced.OTHER_WORD}|[^\p{{Z}}\p{{C}}]', regex.V1
)


class Matcher:
  """Looks for the answers to one question.

  Args:
    answers: any one counts.
  """

  def __init__(self, answers: Iterable[str]):
    tokens = [_TOKEN.findall(_fold(answer)) for answer in answers]
    self._answers = [(max(t, key=len), _join(t)) for t in tokens if t]

  def contains(self, text: str) -> bool:
    """Whether a text contains an answer."""
    text = _fold(text)
    # Cutting into tokens is slow, and most texts lack the longest token.
    candidates = [joined for token, joined in self._answers if token in text]
    if not candidates:
      return False
    joined_text = _join(_TOKEN.findall(text))
    return any(joined in joined_text for joined in candidates)

  def first(self, passages: Iterable[records.Passage]) -> int:
    """The rank from 1 on of the first passage with an answer; 0 for none."""
    for rank, passage in enumerate(passages, start=1):
      if self.contains(passage.text):
        return rank
    return 0


def _fold(text: str) -> str:
  return unicodedata.normalize('NFD', unspaced.fold_width(text)).lower()


def _join(tokens: Sequence[str]) -> str:
  # No token holds a space: a match of strings is a match of whole tokens.
  return f' {" ".join(tokens)} '
