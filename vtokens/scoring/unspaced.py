"""Text in scripts that put no spaces between words.

These are Han, Hiragana, Katakana, Thai, Khmer, Lao and Burmese (Myanmar), not
Korean. Finding their words needs a dictionary, so a *character*, a letter or
digit with its marks, counts as a word here.
"""

import re
import unicodedata

import regex

# Unicode puts the prolonged sound marks, common to both Kana, into neither.
_SCRIPTS = (
  r'\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}'
  r'\u30fc\uff70'
)
_LETTERS = rf'[[{_SCRIPTS}]&&[\p{{L}}\p{{N}}]]'
# Regular expressions, for patterns of version 1 of the module regex.
CHARACTER = rf'{_LETTERS}\p{{M}}*+'
OTHER_WORD = rf'[[\p{{L}}\p{{N}}\p{{M}}]--[{_SCRIPTS}]]+'

_IN_SCRIPTS = regex.compile(
  rf'[[{_SCRIPTS}]&&[\p{{L}}\p{{N}}\p{{M}}]]', regex.V1
)
# A superset of these scripts. Searching it first is several times as fast.
_MAYBE = re.compile(
  '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\ufaff'
  '\uff00-\uffef\U00016fe0-\U0003ffff]'
)
_CHARACTER = regex.compile(CHARACTER, regex.V1)
_OTHER_WORD = regex.compile(OTHER_WORD, regex.V1)
# Punctuation of East Asia, and forms as wide as a Han character.
_WIDE = regex.compile(r'[\u3001-\u303f\uff01-\uffef]')
_NARROW_LETTER = regex.compile(r'[\p{L}--[\uff01-\uffef]]', regex.V1)
_FULL_WIDTH = regex.compile(
  '[０-９Ａ-Ｚａ-ｚ].*[０-９Ａ-Ｚａ-ｚ]', regex.DOTALL
)
# Thai and the other scripts put a space next to a foreign word.
_EAST_ASIAN = r'\p{Han}\p{Hiragana}\p{Katakana}\u30fc'
_OTHER = rf'[[\p{{L}}\p{{N}}]--[{_SCRIPTS}]]'
_MIXED = regex.compile(
  rf'[{_EAST_ASIAN}]{_OTHER}|{_OTHER}[{_EAST_ASIAN}]', regex.V1
)
_NARROW = {
  code: unicodedata.normalize('NFKC', chr(code))
  for code in (0x3000, *range(0xFF01, 0xFFEF))
}


def has(text: str) -> bool:
  """Whether a text has a letter, digit or mark of these scripts."""
  return (
    not text.isascii()
    and _MAYBE.search(text) is not None
    and _IN_SCRIPTS.search(text) is not None
  )


def is_written(text: str) -> bool:
  """Whether a text as a whole is written without spaces.

  English text that quotes a name, as in 'Beijing (北京)', is not. A text is
  written without spaces if one of these holds:

  - at least half of its letters are in these scripts;
  - it has at least four characters in these scripts for each other word;
  - at least a tenth of its letters are in these scripts, and a letter or digit
    of another script stands directly beside Han or Kana, or the text has East
    Asian punctuation or full-width forms (U+3001 to U+303F, U+FF01 to U+FFEF);
  - it is a number or name in several full-width digits or letters.
  """
  if text.isascii() or not _MAYBE.search(text):
    return False
  if not _IN_SCRIPTS.search(text):
    return bool(_FULL_WIDTH.search(text)) and not _NARROW_LETTER.search(text)
  num_letters = sum(map(str.isalpha, text))
  own = sum(found[0].isalpha() for found in characters(text))
  # In 'Transformer 模型是谁提出的?' the English word has most of the letters.
  if 2 * own >= num_letters or own >= 4 * len(_OTHER_WORD.findall(text)):
    return True
  has_sign = _WIDE.search(text) or _MIXED.search(text)
  return bool(has_sign) and 10 * own >= num_letters


def characters(text: str) -> list[str]:
  """The characters in these scripts, each with its marks, in order."""
  return list(_CHARACTER.findall(text))


def fold_width(text: str) -> str:
  """Makes full-width letters, digits, signs and half-width Kana normal."""
  return text if text.isascii() else text.translate(_NARROW)


def words(text: str) -> list[str]:
  """Words of a text: split at spaces, with each character a word."""
  spaced: str = _CHARACTER.sub(r' \g<0> ', text)
  return spaced.split()
