r"""Numbers in text.

A number is written in digits: 1800, 1,800 (commas between groups of three),
18.5, .5, with a sign (-, + or U+2212) that does not follow a word, and with a
currency sign ($ € £ ¥) or % beside it, which are ignored: 5 %, $5 and 5 are
equal. It may be scaled: 1.8e3, 1.8E+3, 1.8 x 10^3 (the sign of multiplication
may also be U+00D7, a raised dot, * or \times, the power 10**3, 10^{3} or 10³),
10^3 alone, or with thousand, million, billion or trillion after it. Values are
compared exactly: 18 is 18.0 and not 17.99.

No number: digits that a letter precedes (B12), a run of digits with commas or
points that is written otherwise (1,2 or 1.2.3), exponents of units (m**3 or
s^-1, with spaces or without), exponents of more than four digits, and numbers
written in words. A point that no digit follows ends a sentence. Letters may
follow at once, as in 5kg; 10k is 10 and the word k, 2nd is 2 and the word nd. A
fraction is two numbers.
"""

import decimal
import re

from vtokens.scoring import metrics

_NUMBER = re.compile(
  r"""
  (?: (?<! [\w).,%] ) (?P<sign> [-+\u2212] ) )?
  [$€£¥]?
  (?<! \w ) (?<! [0-9][.,] )
  (?P<digits>
    [0-9]{1,3} (?: ,[0-9]{3} )+ (?: \.[0-9]+ )?
    | [0-9]+ (?: \.[0-9]+ )?
    | (?<! \. ) \.[0-9]+
  )
  (?! [.,]?[0-9] )
  (?: e (?P<exponent> [-+\u2212]?[0-9]{1,4} ) (?! [0-9] ) )?
  (?! e[-+\u2212]?[0-9] )
  (?: [\s-]? (?P<scale> thousand | million | billion | trillion ) s? \b )?
  """,
  re.VERBOSE | re.IGNORECASE,
)

# After a letter, and not the marks of bold text: **5** has them on both sides,
# and no space inside.
_UNIT_EXPONENT = re.compile(
  r"""
  (?<= [^\W\d_] )
  (?: (?: \^ | \*\* ) | \s+ (?: \^ | \*\* ) (?= [\s+\u2212-] ) )
  \s* [-+\u2212]? (?P<digits> [0-9]+ ) (?! [0-9] | \*\* )
  """,
  re.VERBOSE,
)

_POWER_OF_TEN = re.compile(
  r"""
  (?P<times> (?<= [0-9] ) \s* (?: [x×·*] | \\times ) \s* )?
  (?<! [\w.,] ) 10
  (?:
    (?: \^ | \*\* ) [({]? (?P<exponent> [-+\u2212]?[0-9]+ ) [)}]?
    | (?P<raised> [⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+ )
  )
  """,
  re.VERBOSE,
)

_LOWERED = str.maketrans('⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '+-0123456789')
_SCALES = {'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}
# Those that the normalisation of words does not drop.
_NO_CURRENCY = str.maketrans('', '', '€£¥')


def parse(text: str) -> tuple[list[decimal.Decimal], set[str]]:
  """The numbers in a text, and its other words.

  Args:
    text: any text.

  Returns:
    The numbers in order, and the words of the normalised rest (units, or
    whatever else was said).
  """
  # Made a part of the word, they are no numbers; the sign is punctuation.
  text = _UNIT_EXPONENT.sub(r'\g<digits>', text)
  text = _POWER_OF_TEN.sub(_exponent_notation, text)
  values = [_value(found) for found in _NUMBER.finditer(text)]
  rest = _NUMBER.sub(' ', text).translate(_NO_CURRENCY)
  return values, set(metrics.normalize_answer(rest).split())


def _exponent_notation(found: re.Match[str]) -> str:
  exponent = found['exponent'] or found['raised'].translate(_LOWERED)
  return ('e' if found['times'] else '1e') + exponent


def _value(found: re.Match[str]) -> decimal.Decimal:
  exponent = int((found['exponent'] or '0').replace('\u2212', '-'))
  exponent += _SCALES.get((found['scale'] or '').lower(), 0)
  sign = '' if found['sign'] in (None, '+') else '-'
  # In one piece: arithmetic would round, to the precision of the context.
  return decimal.Decimal(f'{sign}{found["digits"].replace(",", "")}e{exponent}')
