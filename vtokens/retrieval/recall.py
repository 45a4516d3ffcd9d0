"""Whether passages hold an answer, as DPR counts it.

The rule of Karpukhin et al., 2020 (arXiv 2004.04906; `has_answer` with match
type `string` in the code of DPR): text and answer are brought to Unicode's
NFD and lower case and cut into tokens, each a run of letters, digits and
marks, or another character that is neither a separator nor a control
character; an answer is contained if its tokens occur in a row. Titles do not
count. This is not the normalisation of exact match: articles and punctuation
stay.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import regex

from vtokens.data import records

RANKS = (1, 5, 20, 100)

_TOKEN = regex.compile(r'[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]')


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


def table(
  datasets: Sequence[str],
  ranks: Mapping[str, Sequence[int]],
  top_k: int,
) -> dict[str, dict[str, dict[str, float]]]:
  """Recall by dataset, retriever and number of passages.

  Args:
    datasets: of each question.
    ranks: by retriever, what `Matcher.first` gave for each question.
    top_k: how many passages were looked at.

  Returns:
    dataset -> retriever -> {'n': questions, 'recall@k': fraction}, for the
    `RANKS` up to `top_k`, datasets in the order of their first question.
  """
  result: dict[str, dict[str, dict[str, float]]] = {}
  for dataset in dict.fromkeys(datasets):
    result[dataset] = {}
    for retriever, found in ranks.items():
      own = [r for r, d in zip(found, datasets, strict=True) if d == dataset]
      row: dict[str, float] = {'n': len(own)}
      for k in RANKS:
        if k <= top_k:
          row[f'recall@{k}'] = sum(0 < r <= k for r in own) / len(own)
      result[dataset][retriever] = row
  return result


def format_table(
  recall: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
  """The table as text, in percent."""
  rows = [
    (dataset, retriever, values)
    for dataset, by_retriever in recall.items()
    for retriever, values in by_retriever.items()
  ]
  if not rows:
    return ''
  columns = [name for name in rows[0][2] if name != 'n']
  widths = [
    max(len(row[i]) for row in (*rows, ('dataset', 'retriever')))
    for i in (0, 1)
  ]
  head = '  '.join(
    ['dataset'.ljust(widths[0]), 'retriever'.ljust(widths[1]), f'{"n":>7}']
    + [name.rjust(10) for name in columns]
  )
  lines = [head]
  for dataset, retriever, values in rows:
    cells = [f'{100 * values[name]:10.1f}' for name in columns]
    lines.append(
      '  '.join(
        [
          dataset.ljust(widths[0]),
          retriever.ljust(widths[1]),
          f'{values["n"]:7,}',
          *cells,
        ]
      )
    )
  return '\n'.join(lines)


def _fold(text: str) -> str:
  return unicodedata.normalize('NFD', text).lower()


def _join(tokens: Sequence[str]) -> str:
  # No token holds a space: a match of strings is a match of whole tokens.
  return f' {" ".join(tokens)} '
