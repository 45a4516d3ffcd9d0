"""Ids as text that can be read, and safely printed, in a terminal."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

from rich.text import Text

from vtokens.data.assemble import Ids
from vtokens.models.tokenizers.tokenizer import Tokenizer

# Longer texts lose what is neither at an end nor near an answer.
_WHOLE, _START, _END, _AROUND, _GAP = 400, 180, 80, 60, 30
_MARK, _FOUND = 'dim', 'bold reverse'
# These turn what follows around on the screen.
_BIDI = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')


class Reader:
  """From ids to text, with special tokens shown as such.

  Args:
    tokenizer: of the base.
    whole: whether long texts are shown in full.
  """

  def __init__(self, tokenizer: Tokenizer, whole: bool):
    self._tokenizer = tokenizer
    self._whole = whole
    self._ordinary = frozenset(tokenizer.ordinary_ids)
    self._names = {
      **dict.fromkeys(tokenizer.prefix_ids, 'bos'),
      tokenizer.turn_end_id: 'end of turn',
      tokenizer.eos_id: 'eos',
    }
    # A tokenizer may drop the space that starts a text, which pieces that
    # follow others need.
    self._anchor = tokenizer.encode('x')

  def plain(self, ids: Ids) -> str:
    """The text of ids without special tokens and white space at the ends."""
    ordinary = [i for i in ids.tolist() if i in self._ordinary]
    return self._tokenizer.decode(ordinary).strip()

  def show(self, ids: Ids, style: str, answers: Sequence[str] = ()) -> Text:
    """The text of ids, with what cannot be seen made visible.

    Args:
      ids: of tokens of the base.
      style: of the text.
      answers: to be marked where they occur.
    """
    result = Text()
    run: list[int] = []
    for i in [*ids.tolist(), None]:
      if i in self._ordinary:
        run.append(i)
        continue
      if run:
        result.append_text(self._ordinary_text(run, style, answers))
        run = []
      if i is not None:
        result.append(f'⟨{self._names.get(i, f"id {i}")}⟩', f'{style} bold')
    # The sign of a last line break is enough.
    result.rstrip()
    return result

  def _ordinary_text(
    self, ids: list[int], style: str, answers: Sequence[str]
  ) -> Text:
    anchor = self._tokenizer.decode(self._anchor)
    text = self._tokenizer.decode([*self._anchor, *ids])
    text = text.removeprefix(anchor)
    pattern = '|'.join(re.escape(answer) for answer in answers if answer)
    found = [
      match.span()
      for match in re.finditer(rf'(?<!\w)(?:{pattern})(?!\w)', text, re.I)
      if pattern
    ]
    result = Text()
    at = 0
    for start, stop in self._kept(text, found):
      if start > at:
        result.append(f' … {start - at} characters … ', _MARK)
      cuts = sorted(
        {start, stop, *(x for span in found for x in span if start < x < stop)}
      )
      for a, b in itertools.pairwise(cuts):
        marked = any(x <= a and b <= y for x, y in found)
        part = _visible(text[a:b], first=a == 0, last=b == len(text))
        result.append(part, f'{style} {_FOUND}' if marked else style)
      at = stop
    return result

  def _kept(
    self, text: str, found: Sequence[tuple[int, int]]
  ) -> list[tuple[int, int]]:
    """Spans of a text that are shown: its ends, and the first answer."""
    size = len(text)
    if self._whole or size <= _WHOLE:
      return [(0, size)]
    spans = [(0, _START), (size - _END, size)]
    if found:
      start, stop = found[0]
      spans.append((max(0, start - _AROUND), min(size, stop + _AROUND)))
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
      # A gap shorter than the words about it is not worth it.
      if merged and start <= merged[-1][1] + _GAP:
        merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
      else:
        merged.append((start, stop))
    return [(_word_start(text, a), _word_stop(text, b)) for a, b in merged]


def _word_start(text: str, at: int) -> int:
  """The start of the word that stands at an index; the index if it is long."""
  found = text.rfind(' ', max(0, at - _GAP // 2), at) if at else -1
  return found + 1 if found >= 0 else at


def _word_stop(text: str, at: int) -> int:
  found = text.find(' ', at, at + _GAP // 2)
  return found if found >= 0 else at


def printable(text: str) -> str:
  """Text whose control characters, as those of terminals, are spelt out."""
  return ''.join(
    f'\\x{ord(c):02x}'
    if unicodedata.category(c) in ('Cc', 'Cs') or c in _BIDI
    else c
    for c in text
  )


def _visible(text: str, first: bool, last: bool) -> str:
  """Line breaks, and spaces at the ends of a piece, get signs."""
  if first and text.startswith(' '):
    text = '␣' + text[1:]
  if last and text.endswith(' '):
    text = text[:-1] + '␣'
  return ''.join(
    '↵' * len(part) + '\n' if part.startswith('\n') else printable(part)
    for part in re.split(r'(\n+)', text)
  )
