"""Tests of vtokens.retrieval.recall."""

import pytest

from vtokens.data import containment, records
from vtokens.retrieval import recall


@pytest.mark.parametrize(
  ('answer', 'text', 'contained'),
  [
    ('Big Ben', 'the clock of BIG BEN.', True),
    ('Big Ben', 'Big, Ben', False),  # The comma is a token between them.
    ('U.S.', 'in the U.S. army', True),
    ('US', 'in the U.S. army', False),
    ('art', 'party', False),  # Tokens, not characters.
    ('the art', 'art', False),  # Articles count.
    ('Beyoncé', 'Beyonce\u0301 sang', True),  # NFC and NFD are the same.
    ('Beyonce', 'Beyoncé sang', False),
    ('1,000', 'some 1,000 men', True),
    ('10', '1 0', False),
    ('  ', 'anything', False),
    ('twenty-one', 'Twenty-One guns', True),
    ('ΣΟΦΟΣ', 'ο σοφος', True),  # The lower case of Σ is σ or ς.
    # Of scripts without spaces each character is a token.
    ('安娜', '北京的壁画由安娜于一九三一年绘制。', True),
    ('易北河', '小镇在易北河边。', True),
    ('北易河', '小镇在易北河边。', False),
    ('京', '東京都', True),
    ('1931年', '作于１９３１年。', True),
    ('193', '作于1931年。', False),
    ('CUDA', '使用cuda编程', True),
    ('コーヒー', 'ｺｰﾋｰを飲む', True),
    ('カ', 'ガス', False),  # A mark makes it another letter.
    ('กรุงเทพ', 'ฉันอยู่กรุงเทพครับ', True),
    ('ပုဂံ', 'မြို့ဟောင်းပုဂံတွင်', True),
    ('서울', '서울은', False),  # Korean has spaces.
    ('हिन्दी', 'भाषा हिन्दी है', True),  # Marks belong to the word.
  ],
)
def test_contains(answer, text, contained):
  assert containment.Matcher([answer]).contains(text) is contained


def test_any_answer_counts():
  matcher = containment.Matcher(['Paris', 'Lyon'])
  assert matcher.contains('It is Lyon.')
  assert not matcher.contains('It is Nice.')


def test_first_is_a_rank_and_ignores_titles():
  passages = [
    records.Passage(id=str(i), title='Paris', text=text)
    for i, text in enumerate(['Lyon', 'Nice', 'Paris', 'Paris'])
  ]
  assert containment.Matcher(['paris']).first(passages) == 3
  assert containment.Matcher(['rome']).first(passages) == 0


def test_table():
  table = recall.table(
    ['a', 'b', 'a', 'a', 'a'],
    {'x': [1, 0, 5, 6, 0], 'y': [0, 20, 0, 0, 0]},
    top_k=20,
  )
  assert table == {
    'a': {
      'x': {'n': 4, 'recall@1': 0.25, 'recall@5': 0.5, 'recall@20': 0.75},
      'y': {'n': 4, 'recall@1': 0, 'recall@5': 0, 'recall@20': 0},
    },
    'b': {
      'x': {'n': 1, 'recall@1': 0, 'recall@5': 0, 'recall@20': 0},
      'y': {'n': 1, 'recall@1': 0, 'recall@5': 0, 'recall@20': 1},
    },
  }
  lines = recall.format_table(table).splitlines()
  columns = ['recall@1', 'recall@5', 'recall@20']
  assert lines[0].split() == ['dataset', 'retriever', 'n', *columns]
  assert lines[1].split() == ['a', 'x', '4', '25.0', '50.0', '75.0']
  assert len({len(line) for line in lines}) == 1
