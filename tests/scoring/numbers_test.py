"""Numbers in text."""

import decimal

import hypothesis
import pytest
from hypothesis import strategies as st

from vtokens.scoring import numbers


@pytest.mark.parametrize(
  ('text', 'values', 'words'),
  [
    ('18', ['18'], ''),
    ('18.', ['18'], ''),
    ('It is 18.', ['18'], 'it is'),
    ('#### 1,800', ['1800'], ''),
    ('12,345,678.90', ['12345678.9'], ''),
    ('.5', ['0.5'], ''),
    ('...5', ['5'], ''),
    ('007', ['7'], ''),
    # Signs.
    ('-5', ['-5'], ''),
    ('\u22125 or +5', ['-5', '5'], 'or'),
    ('(-5)', ['-5'], ''),
    ('3-4', ['3', '4'], ''),
    ('x-5', ['5'], 'x'),
    ('5 - 3 = 2', ['5', '3', '2'], ''),
    ('2020-01-05', ['2020', '1', '5'], ''),
    # Currency and percent.
    ('$7224', ['7224'], ''),
    ('-$5 and $-5', ['-5', '-5'], 'and'),
    ('€1,000.50', ['1000.5'], ''),
    ('5 €', ['5'], ''),
    ('1.60%', ['1.6'], ''),
    ('US$5', ['5'], 'us'),
    # Scaled.
    ('3.20E+13', ['32000000000000'], ''),
    ('2.50e-04', ['0.00025'], ''),
    ('$18e+6', ['18000000'], ''),
    ('1.8 x 10^3 kg', ['1800'], 'kg'),
    ('3×10⁸', ['300000000'], ''),
    ('6.02·10**23', ['6.02e23'], ''),
    (r'2 \times 10^{-3}', ['0.002'], ''),
    ('10^9', ['1000000000'], ''),
    ('10⁻² m', ['0.01'], 'm'),
    ('$1.5 million', ['1500000'], ''),
    ('2-billion people', ['2000000000'], 'people'),
    ('5 Trillions', ['5e12'], ''),
    ('5 millionaires', ['5'], 'millionaires'),
    ('3 x 10', ['3', '10'], 'x'),
    # Units, whose exponents are no numbers.
    ('5kg', ['5'], 'kg'),
    ('1.615e+20N', ['1.615e20'], 'n'),
    ('510000 km**3', ['510000'], 'km3'),
    ('229.4 kg*m*s**-2', ['229.4'], 'kgms2'),
    ('9.81 m s^-2', ['9.81'], 'm s2'),
    ('5 m²', ['5'], 'm²'),
    ('0.066 km ** 2 * person ** -1', ['0.066'], 'km2 person1'),
    ('2.18e+25 m** 3', ['2.18e25'], 'm3'),
    ('0.034 person * kilometre **-2', ['0.034'], 'person kilometre2'),
    ('4.39e+26 kg*meters**2*s** -1', ['4.39e26'], 'kgmeters2s1'),
    # Marks of bold text are not powers.
    ('**18**', ['18'], ''),
    ('is **18**.', ['18'], 'is'),
    ('is **18 eggs**', ['18'], 'is eggs'),
    ('is **-18**', ['-18'], 'is'),
    ('is**18**', ['18'], 'is'),
    # Not numbers.
    ('B12', [], 'b12'),
    ('1,2', [], '12'),
    ('1.2.3', [], '123'),
    ('1,00,000', [], '100000'),
    ('1234,567', [], '1234567'),
    ('1e12345', [], '1e12345'),
    ('three', [], 'three'),
    ('', [], ''),
    # Documented limits.
    ('10k', ['10'], 'k'),
    ('2nd', ['2'], 'nd'),
    ('1/2', ['1', '2'], ''),
    ('10:30', ['10', '30'], ''),
  ],
)
def test_parse(text, values, words):
  found, rest = numbers.parse(text)
  assert found == [decimal.Decimal(value) for value in values]
  assert rest == set(words.split())


def test_exact_however_many_digits():
  digits = '1' * 60
  (value,), _ = numbers.parse(f'{digits[:-1]}2')
  assert value != numbers.parse(digits)[0][0]
  (value,), _ = numbers.parse(f'0.{digits} thousand')
  assert value == decimal.Decimal(f'111.{digits[3:]}')


def test_a_huge_exponent_costs_nothing():
  (value,), _ = numbers.parse('1e9999')
  assert value > numbers.parse('9' * 500)[0][0]
  assert numbers.parse(f'10^{"9" * 5000}')[0] == []


@hypothesis.given(
  st.decimals(allow_nan=False, allow_infinity=False, places=3),
  st.sampled_from(['{}', '{:,}', '{:e}', '{:E}', '${:,} dollars', 'is {}.']),
)
def test_what_python_writes_is_read(value, form):
  value = value % 10**20
  found, _ = numbers.parse(form.format(value))
  assert found == [value]


@hypothesis.given(
  st.text('0123456789.,-+eE$%*^x×10⁻² mkgt', max_size=30) | st.text()
)
def test_any_text_is_read(text):
  found, words = numbers.parse(text)
  assert all(value.is_finite() for value in found)
  assert all(word.split() == [word] for word in words)
