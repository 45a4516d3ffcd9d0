r"""Finds numbers in text.

A number is written in digits: 1800, 1,800 (commas between groups of three),
18.5 or .5. It may have a sign (-, + or U+2212) that does not follow a word. A
currency sign ($ € £ ¥) or % beside it is ignored: 5 %, $5 and 5 are equal. It
may have a scale: 1.8e3, 1.8E+3, 1.8 x 10^3 (for x also U+00D7, a raised dot, *
or \times; for 10^3 also 10**3, 10^{3} or 10³), 10^3 alone, or the words
thousand, million, billion or trillion. Values are compared exactly: 18 equals
18.0, not 17.99.

These are not numbers: digits after a letter (B12), digits with other commas or
points (1,2 or 1.2.3), exponents of units (m**3 or s^-1, with or without
spaces), exponents of more than four digits, and numbers in words. A point
without a digit after it ends a sentence. Letters may follow directly: 5kg; 10k
is 10 and the word k, 2nd is 2 and the word nd. A fraction is two numbers.
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

# Follows a letter. Not the marks of bold text: **5** has them on both sides,
# without a space inside.
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
# Currency signs that `normalize_answer` does not drop.
_NO_CURRENCY = str.maketrans('', '', '€£¥')


def parse(text: str) -> tuple[list[decimal.Decimal], set[str]]:
  """Finds the numbers in a text, in order, and its other words, normalised."""
  # Joined to the unit's letters, an exponent is no number.
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
  # Not by arithmetic, which would round to the context's precision.
  return decimal.Decimal(f'{sign}{found["digits"].replace(",", "")}e{exponent}')
