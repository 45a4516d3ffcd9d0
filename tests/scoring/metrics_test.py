"""Tests of vtokens.scoring.metrics."""

import re

import hypothesis
import pytest
import regex
from hypothesis import strategies as st

from vtokens.scoring import metrics


def contains_answer(prediction, answers):
  """Containment alone."""
  return metrics.text_scores(prediction, answers, ['contains'])['contains']


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', ''),
    ('  ', ''),
    ('The', ''),
    ('a an the', ''),
    ('The Beatles', 'beatles'),
    ('Theatre of an anthem', 'theatre of anthem'),
    ('Vitamin A', 'vitamin'),
    ('U.S.A.', 'usa'),
    ('the U.S.', 'us'),
    # Punctuation goes first, so an article may be joined to its neighbour ...
    ('a.b', 'ab'),
    ('the-end', 'theend'),
    # ... or appear.
    ('t.h.e. cat', 'cat'),
    ('1,000', '1000'),
    ('$5.50', '550'),
    ("it's", 'its'),
    (r'!"#$%&\'()*+,-./:;<=>?@[\]^_`{|}~', ''),
    # Not in string.punctuation: kept. A word boundary is next to each of them.
    ('it\u2019s', 'it\u2019s'),
    ('\u201cHamlet\u201d', '\u201chamlet\u201d'),
    ('1914\u20131918', '1914\u20131918'),
    ('the\u2014end', '\u2014end'),
    ('\u201cThe\u201d end', '\u201c \u201d end'),
    ('5 €', '5 €'),
    # White space of any kind.
    ('New\xa0York', 'new york'),
    ('a\xa0cat', 'cat'),
    ('\tone\n two\u2003three ', 'one two three'),
    # Case, beyond ASCII too; no accents are dropped.
    ('ÉCOLE Élysée', 'école élysée'),
    ('THE Ärzte', 'ärzte'),
    # A letter with an accent is a letter: no boundary, no article.
    ('aé', 'aé'),
  ],
)
def test_normalize_answer(text, expected):
  assert metrics.normalize_answer(text) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'em', 'f1'),
  [
    ('Paris', ['Paris'], 1, 1),
    ('paris.', ['The Paris'], 1, 1),
    ('London', ['Paris'], 0, 0),
    # P = 1/4, R = 1/1: 2 * 1/4 / (5/4) = 2/5. 'The' does not count.
    ('The capital is Paris, obviously', ['Paris'], 0, 2 / 5),
    # P = 1/1, R = 1/2: 2 * 1/2 / (3/2) = 2/3.
    ('Shakespeare', ['William Shakespeare'], 0, 2 / 3),
    # The best answer counts: here the second, and a third that shares nothing.
    ('Shakespeare', ['William Shakespeare', 'shakespeare', 'Bard'], 1, 1),
    # P = 2/3, R = 2/2 for the first (4/5); 1/3 and 1/3 for the second (1/3).
    ('New York City', ['New York', 'city of lights'], 0, 4 / 5),
    # Word order does not matter to F1.
    ('York New', ['New York'], 0, 1),
    # Repeated words count as often as they occur on both sides.
    # min(3, 1) = 1 shared: P = 1/3, R = 1/2, 2 * 1/6 / (5/6) = 2/5.
    ('no no no', ['no way'], 0, 2 / 5),
    # min(2, 3) = 2 shared: P = 2/2, R = 2/4, 2 * 1/2 / (3/2) = 2/3.
    ('dog dog', ['dog dog dog cat'], 0, 2 / 3),
    # Nothing shared is 0, even when both are empty and so equal.
    ('', ['Paris'], 0, 0),
    ('Paris', ['the'], 0, 0),
    # Articles of an answer that is nothing else stay, on both sides.
    ('', ['the'], 0, 0),
    ('The...', ['a'], 0, 0),
    ('A', ['A'], 1, 1),
    ('a.', ['A'], 1, 1),
    ('The', ['A'], 0, 0),
    ('', ['A'], 0, 0),
    ('', ['A', 'B'], 0, 0),
    # P = 1/4, R = 1.
    ('A. It is red', ['A'], 0, 2 / 5),
    ('The The', ['The The'], 1, 1),
    ('The', ['The The'], 0, 2 / 3),
    # Nor does the punctuation go where there is nothing else.
    ('+', ['+'], 1, 1),
    ('-', ['+'], 0, 0),
    ('', ['+'], 0, 0),
    ('the', ['?!'], 0, 0),
    # Hyphens join words, Unicode dashes do not go away.
    ('twenty-one', ['twentyone'], 1, 1),
    ('twenty-one', ['twenty one'], 0, 0),
    ('1914-1918', ['19141918'], 1, 1),
    ('1914\u20131918', ['1914-1918'], 0, 0),
    # A curly quote stays, a straight one goes: only the latter gives "its".
    ('it\u2019s', ["it's"], 0, 0),
    ("it's", ['its'], 1, 1),
    # Only "new" is shared: P = 1/2, R = 1/2.
    ('New York\u201d', ['New York'], 0, 1 / 2),
    ('New\xa0York', ['New York'], 1, 1),
    ('Beyonce', ['Beyoncé'], 0, 0),
    ('1,000', ['1000'], 1, 1),
    ('3.5', ['35'], 1, 1),
    ('5', ['five'], 0, 0),
  ],
)
def test_exact_match_and_token_f1(prediction, answers, em, f1):
  assert metrics.exact_match(prediction, answers) == em
  assert metrics.token_f1(prediction, answers) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    ('Paris', ['Paris'], 1),
    ('It is the Paris, of course.', ['paris'], 1),
    ('in New York City', ['York City', 'x'], 1),
    # All words, in a row, in order.
    ('New and York', ['New York'], 0),
    ('York New', ['New York'], 0),
    ('New', ['New York'], 0),
    # An article between them is dropped first.
    ('Alexander the Great', ['Alexander Great'], 1),
    # Whole words: substrings, which FlashRAG's acc takes, are not enough.
    ('nobody', ['no'], 0),
    ('1914', ['14'], 0),
    ('Parisian', ['Paris'], 0),
    ('it is 1,914 now', ['1914'], 1),
    # A hyphen joins.
    ('Franco-Prussian', ['Prussian'], 0),
    # An answer of articles or punctuation: these very ones.
    ('Paris', ['the'], 0),
    ('', ['the'], 0),
    ('A!', ['the'], 0),
    ('A. It is red', ['A'], 1),
    ('Answer: a', ['A'], 1),
    ('An answer', ['A'], 0),
    ('C +', ['+'], 1),
    ('', ['Paris'], 0),
  ],
)
def test_contains_answer(prediction, answers, expected):
  assert contains_answer(prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answer', 'em', 'f1', 'contains'),
  [
    ('安娜。', '安娜', 1, 1, 1),
    ('答案是安娜。', '安娜', 0, 4 / 7, 1),
    ('安娜画的', '安娜', 0, 2 / 3, 1),
    ('娜安', '安娜', 0, 1, 0),
    ('李四', '安娜', 0, 0, 0),
    # Punctuation between goes; the letter A is no article.
    ('卡尔·马克思', '卡尔马克思', 1, 1, 1),
    ('维生素A', '维生素', 0, 6 / 7, 1),
    ('维生素B', '维生素A', 0, 3 / 4, 0),
    # Other scripts in between, with a space or without.
    ('iPhone 手机。', 'iPhone手机', 1, 1, 1),
    ('这是iPhone手机', 'iphone', 0, 1 / 3, 1),
    ('1931', '1931年', 0, 2 / 3, 0),
    ('一九三一年（1931年）', '1931', 0, 2 / 8, 1),
    # Widths, also of numbers alone; Kana in one or two code points.
    ('１９３１年', '1931年', 1, 1, 1),
    ('１９３１', '1931', 1, 1, 1),
    ('Ａ組', 'a組', 1, 1, 1),
    ('ｺｰﾋｰ', 'コーヒー', 1, 1, 1),
    ('ガ', 'カ\u3099', 1, 1, 1),
    ('カ', 'ガ', 0, 0, 0),
    # Vowels and tones stay with their letter.
    ('น้ำ', 'น้ำ', 1, 1, 1),
    ('ป่า', 'ปา', 0, 2 * 1 / 4, 0),
    ('อยู่กรุงเทพ', 'กรุงเทพ', 0, 2 * 6 / 14, 1),
    ('ភ្នំពេញ។', 'ភ្នំពេញ', 1, 1, 1),
    ('ວຽງຈັນ', 'ວຽງຈັນ', 1, 1, 1),
    ('ရန်ကုန်။', 'ရန်ကုန်', 1, 1, 1),
    # Korean has spaces.
    ('서울은', '서울', 0, 0, 0),
    # English that quotes a name is compared as before.
    ('Beijing', 'Beijing (北京)', 0, 2 / 3, 0),
    ('The Beijing (北京)', 'a Beijing (北京)', 1, 1, 1),
    ('Procter & Gamble', 'Procter ＆ Gamble', 0, 4 / 5, 0),
    ('B', 'Ｂ', 0, 0, 0),
    # Nothing but punctuation.
    ('。', '。', 1, 1, 1),
    ('', '。', 0, 0, 0),
  ],
)
def test_scripts_without_spaces(prediction, answer, em, f1, contains):
  found = metrics.text_scores(prediction, [answer], ['em', 'f1', 'contains'])
  assert found == pytest.approx({'em': em, 'f1': f1, 'contains': contains})


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    ('The Paris.', ['paris'], 1),
    # No spaces are shared where none were written.
    ('安娜', ['李四'], 0),
    ('安娜画', ['安娜'], 4 / 5),
    ('abc', ['cab'], 1),
    ('abc', ['xyz'], 0),
    # 'aab' and 'ab': 2 shared; P = 2/3, R = 1.
    ('aab', ['ab', 'x'], 4 / 5),
    # 'on mat' and 'on at': 5 with the space, of 6 and of 5.
    ('on the mat', ['on at'], 10 / 11),
    # Nothing shared is 0, as of words.
    ('', ['the'], 0),
    ('the', ['the'], 1),
    ('', ['x'], 0),
    # A wrong answer: l, o, o, n and the space are shared.
    ('London UK', ['Oslo No'], 2 * 5 / (9 + 7)),
  ],
)
def test_char_f1(prediction, answers, expected):
  found = metrics.char_f1(prediction, answers)
  assert found == pytest.approx(expected, abs=1e-12)


def test_text_scores_takes_the_best_answer_for_each_metric():
  # The first shares more words, the second more letters.
  answers = ['New York', 'newyorkcity']
  scores = metrics.text_scores('New Jersey City', answers, metrics.METRICS)
  assert list(scores) == ['em', 'f1', 'contains', 'char_f1']
  assert scores['f1'] == metrics.token_f1('New Jersey City', answers[:1]) == 0.4
  chars = [metrics.char_f1('New Jersey City', [answer]) for answer in answers]
  assert scores['char_f1'] == chars[1] > chars[0]


def test_score_averages_in_percent_without_rounding():
  scores = metrics.score(
    ['Paris', 'Shakespeare', 'no'],
    [['paris'], ['William Shakespeare'], ['yes', 'sure']],
  )
  assert scores.em == pytest.approx(100 / 3, abs=1e-12)
  assert scores.f1 == pytest.approx(100 * (1 + 2 / 3) / 3, abs=1e-12)
  assert scores.n == 3
  assert scores.as_dict() == {'em': scores.em, 'f1': scores.f1, 'n': 3}


def test_score_refuses_what_has_no_mean():
  with pytest.raises(ValueError, match='1 predictions for 2 questions'):
    metrics.score(['x'], [['x'], ['y']])
  with pytest.raises(ValueError, match='0 predictions'):
    metrics.score([], [])
  with pytest.raises(ValueError, match='answers is empty'):
    metrics.score(['x'], [[]])


@pytest.mark.parametrize(
  'metric',
  [
    metrics.exact_match,
    metrics.token_f1,
    contains_answer,
    metrics.char_f1,
  ],
)
def test_answers_are_checked(metric):
  with pytest.raises(ValueError, match='answers is empty'):
    metric('x', [])
  with pytest.raises(TypeError, match="the string 'Paris'"):
    metric('x', 'Paris')


# The definition once more, with nothing of the module's or the official
# script's means: ASCII punctuation by code point, articles and words by
# splitting, the shared words by crossing them off a list.


def _words(text, drop=2):
  text = text.lower()
  if drop:
    text = re.sub(r'[!-/:-@\[-`{-~]', '', text)
  if drop == 2:
    text = re.sub(r'(?<!\w)(?:the|an|a)(?!\w)', '\n', text)
  return [word for word in re.split(r'\s+', text) if word]


def _pairs(prediction, answers):
  for answer in answers:
    drop = 2
    while drop and not _words(answer, drop):
      drop -= 1
    if not _words(answer, drop):
      drop = 2
    yield _words(prediction, drop), _words(answer, drop)


def _em(prediction, answers):
  return float(any(said == gold for said, gold in _pairs(prediction, answers)))


def _f1(prediction, answers):
  best = 0.0
  for said, gold in _pairs(prediction, answers):
    left = list(gold)
    total = len(left) + len(said)
    shared = 0
    for word in said:
      if word in left:
        left.remove(word)
        shared += 1
    best = max(best, 2 * shared / total if shared else 0.0)
  return best


def _contains(prediction, answers):
  for said, gold in _pairs(prediction, answers):
    if not gold:
      found = not said
    else:
      starts = range(len(said) - len(gold) + 1)
      found = any(said[i : i + len(gold)] == gold for i in starts)
    if found:
      return 1.0
  return 0.0


# Written otherwise; what is English is generated below.
_SCRIPTS = regex.compile(
  r'[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}ーｰ'
  '\uff01-\uffef]'
)


# Few words and marks, so that matches, repeats and neighbours are common.
_PIECE = st.sampled_from(
  [
    *('a', 'an', 'the', 'The', 'cat', 'Cat', 'cats', 'é', 'x', '1', '_'),
    *(
      ' ',
      ' ',
      ' ',
      '\xa0',
      '\n',
      '.',
      ',',
      '-',
      '\u2013',
      "'",
      '\u2019',
      '\u201d',
      '$',
    ),
  ]
)
_TEXT = st.lists(_PIECE, max_size=8).map(''.join) | st.text(max_size=12).filter(
  lambda text: not _SCRIPTS.search(text)
)
_ANSWERS = st.lists(_TEXT, min_size=1, max_size=3)


@hypothesis.given(_TEXT, _ANSWERS)
def test_agrees_with_an_independent_definition(prediction, answers):
  assert metrics.exact_match(prediction, answers) == _em(prediction, answers)
  f1 = metrics.token_f1(prediction, answers)
  assert f1 == pytest.approx(_f1(prediction, answers), abs=1e-12)
  assert 0 <= f1 <= 1
  contains = contains_answer(prediction, answers)
  assert contains == _contains(prediction, answers)


@hypothesis.given(_TEXT, _ANSWERS)
def test_laws(prediction, answers):
  visible = bool(prediction.strip())
  em = metrics.exact_match(prediction, answers)
  f1 = metrics.token_f1(prediction, answers)
  # An exact match shares every word, unless there is none.
  if em and visible and metrics.normalize_answer(prediction):
    assert f1 == 1
  contains = contains_answer(prediction, answers)
  assert em <= contains
  assert 0 <= metrics.char_f1(prediction, answers) <= 1
  # More answers never lower a score; their order does not matter.
  for metric, value in (
    (metrics.exact_match, em),
    (metrics.token_f1, f1),
    (contains_answer, contains),
    (metrics.char_f1, metrics.char_f1(prediction, answers)),
  ):
    assert metric(prediction, answers[::-1]) == value
    assert metric(prediction, answers[:1]) <= value
    assert metric(prediction, [*answers, prediction]) == bool(
      visible or metric in (metrics.exact_match, contains_answer)
    )
