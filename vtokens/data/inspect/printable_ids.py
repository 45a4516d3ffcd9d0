"""Token ids as text that is safe to print in a terminal."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

from rich.text import Text

from vtokens.data.prompt_encoder import Ids
from vtokens.models.tokenizers.tokenizer import Tokenizer

# Longer texts lose what is neither near an end nor near the first answer.
_WHOLE, _START, _END, _AROUND, _GAP = 400, 180, 80, 60, 30
# These reverse the text that follows them on the screen.
_BIDI = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')


class IdPrinter:
  """Turns ids into text in which special tokens and line breaks are visible.

  Args:
    tokenizer: tokenizer of the base.
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
    # Tokenizers may drop the space at the start of a text. A piece that
    # follows another needs it, so decode the piece after this.
    self._anchor = tokenizer.encode('x')

  def plain(self, ids: Ids) -> str:
    """The text without special tokens and white space at its ends."""
    ordinary = [i for i in ids.tolist() if i in self._ordinary]
    return self._tokenizer.decode(ordinary).strip()

  def show(self, ids: Ids, style: str, answers: Sequence[str] = ()) -> Text:
    """The text of ids of the base.

    Args:
      ids: token ids.
      style: rich style of the text.
      answers: texts to highlight.
    """
    result = Text()
    is_ordinary = self._ordinary.__contains__
    for ordinary, run in itertools.groupby(ids.tolist(), is_ordinary):
      if ordinary:
        result.append_text(self._ordinary_text([*run], style, answers))
      else:
        names = [f'⟨{self._names.get(i, f"id {i}")}⟩' for i in run]
        result.append(''.join(names), f'{style} bold')
    # The sign of the last line break is enough.
    result.rstrip()
    return result

  def _ordinary_text(
    self, ids: list[int], style: str, answers: Sequence[str]
  ) -> Text:
    anchor = self._tokenizer.decode(self._anchor)
    text = self._tokenizer.decode([*self._anchor, *ids]).removeprefix(anchor)
    # Sign spaces at the ends.
    text = re.sub(r'\A | \Z', '␣', text)
    words = '|'.join(re.escape(printable(a)) for a in answers if a) or r'(?!)'
    pattern = re.compile(rf'(?<!\w)(?:{words})(?!\w)', re.IGNORECASE)
    result = Text()
    at = 0
    for start, stop in self._spans(text, pattern):
      if start - at > _GAP:
        result.append(f' … {start - at} characters … ', 'dim')
      else:
        start = at
      part = re.sub(r'\n+', _sign_breaks, text[start:stop])
      shown = Text(printable_lines(part), style)
      shown.highlight_regex(pattern, 'bold reverse')
      result.append_text(shown)
      at = max(at, stop)
    return result

  def _spans(
    self, text: str, pattern: re.Pattern[str]
  ) -> list[tuple[int, int]]:
    """Spans of a text that are shown, by their start."""
    size = len(text)
    if self._whole or size <= _WHOLE:
      return [(0, size)]
    spans = [(0, _START), (size - _END, size)]
    if found := pattern.search(text):
      start, stop = found.start() - _AROUND, found.end() + _AROUND
      spans.append((max(0, start), min(size, stop)))
    return sorted(spans)


def _sign_breaks(breaks: re.Match[str]) -> str:
  return '↵' * len(breaks[0]) + '\n'


def printable(text: str) -> str:
  """Replaces control characters, which could steer a terminal, by escapes."""
  return ''.join(
    f'\\x{ord(c):02x}'
    if unicodedata.category(c) in ('Cc', 'Cs') or c in _BIDI
    else c
    for c in text
  )


def printable_lines(text: str) -> str:
  """Replaces control characters except line breaks; see `printable`."""
  return '\n'.join(printable(line) for line in text.split('\n'))
