"""Tests of vtokens.scoring.unspaced."""

import unicodedata

import pytest
import regex

from vtokens.scoring import unspaced


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', False),
    ('plain', False),
    ('Beyoncé — “it’s”', False),
    ('서울은 한국의 수도', False),
    ('Москва', False),
    ('हिन्दी', False),
    ('北京', True),
    ('ひらがな', True),
    ('กรุงเทพ', True),
    ('ភ្នំពេញ', True),
    ('ວຽງຈັນ', True),
    ('ရန်ကုန်', True),
    ('3個', True),
    ('iPhone手机', True),
    ('iPhone 手机。', True),
    ('Transformer 模型是谁提出的?', True),
    ('iPhone ราคาเท่าไหร่', True),
    ('What is 北京大学?', False),
    ('Zhou Shuren (Lu Xun, 鲁迅)', False),
    ('Beijing (北京)', False),
    ('Beijing（北京）', True),
    ('A reunion dinner (Chinese: 年夜飯, 團年飯 or 團圓飯) is held', False),
    ('Amhrรกn na bhFiann', False),  # Broken English, as is found in data.
    ('Procter ＆ Gamble', False),
    ('１９３１', True),
    ('Ｂ', False),
  ],
)
def test_is_written(text, expected):
  assert unspaced.is_written(text) is expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('two words', ['two', 'words']),
    ('北京的tower 2', ['北', '京', '的', 'tower', '2']),
    ('か\u3099く', ['か\u3099', 'く']),
    ('コーヒー', ['コ', 'ー', 'ヒ', 'ー']),
    ('น้ำ', ['น้', 'ำ']),
    ('e\u0301té', ['e\u0301té']),
  ],
)
def test_words(text, expected):
  assert unspaced.words(text) == expected


def test_width():
  assert unspaced.fold_width('Ａｂ１，　ﾊﾟ') == 'Ab1, ハ\u309a'
  assert unspaced.fold_width('½ ﬁ é') == '½ ﬁ é'


def test_has():
  # Every character of these scripts, by the property.
  scripts = ('Han', 'Hiragana', 'Katakana', 'Thai', 'Khmer', 'Lao', 'Myanmar')
  names = ''.join(rf'\p{{{name}}}' for name in scripts)
  pattern = regex.compile(f'[{names}ーｰ]')
  kinds = ('L', 'M', 'N')
  for code in range(0x32000):
    if 0xD800 <= code < 0xE000:
      continue
    character = chr(code)
    expected = (
      pattern.match(character) is not None
      and unicodedata.category(character)[0] in kinds
    )
    # Python's Unicode may be older than that of the package regex.
    if unicodedata.category(character) != 'Cn':
      assert unspaced.has(character) == expected, hex(code)
  assert unspaced.has('the name 北京')
  assert not unspaced.has('the naïve “name”')
