"""Rules of comparison."""

import numpy as np
import pytest

from vtokens.data.records import Record
from vtokens.evaluation import answer_rules
from vtokens.host import errors
from vtokens.scoring import metrics


def record(*answers: str, name: str = 'r1') -> Record:
  return Record(name, 'some_set', 'what?', answers, {})


def one(rule: str, prediction: str, *answers: str) -> tuple[float, float]:
  """EM and containment; F1 is EM under all rules but text."""
  answer_rules.check_answers(rule, [record(*answers)])
  values = answer_rules.score_questions(rule, [prediction], [answers])
  if rule != 'text':
    assert values['f1'] == values['em']
  return float(values['em'][0]), float(values['contains'][0])


def test_text_is_squad():
  predictions = ['The Paris!', 'in Paris, of course', '', 'nobody', 'York New']
  answers = [['Paris'], ['Rome', 'Paris'], ['x'], ['no'], ['New York']]
  values = answer_rules.score_questions(
    'text', predictions, answers, char_f1=True
  )
  assert list(values) == ['em', 'f1', 'contains', 'char_f1']
  for name, metric in (
    ('em', metrics.exact_match),
    ('f1', metrics.token_f1),
    ('char_f1', metrics.char_f1),
  ):
    expected = [metric(p, a) for p, a in zip(predictions, answers, strict=True)]
    np.testing.assert_array_equal(values[name], expected)
    assert values[name].dtype == np.float64
  assert values['em'].tolist() == [1, 0, 0, 0, 0]
  assert values['contains'].tolist() == [1, 1, 0, 0, 0]
  assert values['f1'][4] == 1


@pytest.mark.parametrize(
  ('prediction', 'patterns', 'em', 'contains'),
  [
    ('China', ['China'], 1, 1),
    ('  china.\n', ['China'], 1, 1),
    ('the China', ['China'], 0, 1),
    ('Chinatown', ['China'], 0, 1),
    ('Chinatown', [r'China\b'], 0, 0),
    ('20,320 feet', [r'20\s?,?\s?320\s?-?\s?f(ee|oo)t|6,194-meter'], 1, 1),
    # Alternatives belong to the whole pattern.
    ('about 6,194-meter', [r'20,?320 feet|6,194-meter'], 0, 1),
    # The pattern's own case classes do not matter, nor its anchors.
    ('ÉCOLE', ['école'], 1, 1),
    ('ab', ['^a', 'b$'], 0, 1),
    # A full stop that the pattern wants stays, and is not hidden from it.
    ('Washington D.C.', [r'Washington D\.C\.'], 1, 1),
    ('in 1999.', [r'1999$', 'x'], 0, 0),
    ('1999.', [r'1999$'], 1, 1),
    # Any of them.
    ('Sweden', ['Norway', 'Sw.den'], 1, 1),
    ('', ['x'], 0, 0),
  ],
)
def test_regex(prediction, patterns, em, contains):
  assert one('regex', prediction, *patterns) == (em, contains)


@pytest.mark.parametrize(
  ('prediction', 'golds', 'em', 'contains'),
  [
    ('18', ['18'], 1, 1),
    ('18.', ['18'], 1, 1),
    ('$18.00', ['18'], 1, 1),
    ('18 %', ['18'], 1, 1),
    ('#### 1800', ['1,800'], 1, 1),
    ('The answer is 18.', ['18'], 0, 1),
    ('18 eggs', ['18'], 0, 1),
    # A unit of the gold may be said, another may not.
    ('1800 L', ['1800 L'], 1, 1),
    ('1,800', ['1800 L'], 1, 1),
    ('1800 kg', ['1800 L'], 0, 1),
    ('1.6 x 10^20 N', ['1.6e+20 N'], 1, 1),
    ('2 m**3', ['2 m**3'], 1, 1),
    ('3', ['2 m**3'], 0, 0),
    # One number, or it is not clear which is the answer.
    ('9 + 9 = 18', ['18'], 0, 1),
    ('18, 18', ['18'], 0, 1),
    ('118', ['18'], 0, 0),
    ('18.5', ['18'], 0, 0),
    ('17.9999', ['18'], 0, 0),
    ('-18', ['18'], 0, 0),
    ('18 million', ['18'], 0, 0),
    ('$18,000,000', ['18 million'], 1, 1),
    ('eighteen', ['18'], 0, 0),
    ('', ['18'], 0, 0),
    ('19', ['18', '19'], 1, 1),
  ],
)
def test_number(prediction, golds, em, contains):
  assert one('number', prediction, *golds) == (em, contains)


@pytest.mark.parametrize(
  ('prediction', 'golds', 'em'),
  [
    ('Yes', ['yes'], 1),
    ('yes, because it is.', ['yes'], 1),
    ('True.', ['yes'], 1),
    ('**no**', ['False'], 1),
    ('The no', ['no'], 1),
    ('No', ['yes'], 0),
    ('yes', ['no'], 0),
    ('Yesterday', ['yes'], 0),
    ('nobody', ['no'], 0),
    ('It is true', ['yes'], 0),
    ('maybe', ['no'], 0),
    ('', ['no'], 0),
    ('yes', ['yes', 'true'], 1),
  ],
)
def test_yes_no(prediction, golds, em):
  assert one('yes_no', prediction, *golds) == (em, em)


def test_char_f1_is_of_text_but_for_patterns():
  # All four characters of one, four of the five of the other.
  values = answer_rules.score_questions(
    'number', ['18 km'], [['18 m']], char_f1=True
  )
  assert values['char_f1'] == pytest.approx([2 * 4 / 9])
  values = answer_rules.score_questions(
    'yes_no', ['true'], [['yes']], char_f1=True
  )
  assert values['em'] == [1]
  assert values['char_f1'] == pytest.approx([2 * 1 / 7])
  values = answer_rules.score_questions('regex', ['ab'], [['a.']], char_f1=True)
  assert values['char_f1'] == [1]
  assert 'char_f1' not in answer_rules.score_questions('text', ['x'], [['x']])


def test_no_questions():
  for rule in answer_rules.RULES:
    values = answer_rules.score_questions(rule, [], [])
    assert {name: v.shape for name, v in values.items()} == {
      'em': (0,),
      'f1': (0,),
      'contains': (0,),
    }


@pytest.mark.parametrize(
  ('rule', 'answers', 'message'),
  [
    ('regex', ('a', 'b(c'), r"'b\(c' is not a regular expression: missing \)"),
    ('regex', ('a|',), r"'a\|' matches the empty text"),
    ('regex', ('a{99999999999}',), 'is not a regular expression'),
    ('number', ('three',), "'three' has 0 numbers in it, expected one"),
    ('number', ('18', '3 to 4'), "'3 to 4' has 2 numbers in it"),
    ('yes_no', ('yes', 'maybe'), "'maybe' is none of yes, true, no, false"),
    ('yes_no', ('yes', 'no'), 'both yes and no are accepted'),
  ],
)
def test_answers_of_another_kind(rule, answers, message):
  fine = record('yes' if rule == 'yes_no' else '1', name='r0')
  answer_rules.check_answers(rule, [fine])
  with pytest.raises(errors.UserError, match=message) as e:
    answer_rules.check_answers(rule, [fine, record(*answers), record('bad (')])
  text = str(e.value)
  assert text.startswith('dataset some_set, record r1: ')
  assert f'rule {rule};' in text
  assert '\n' not in text
  answer_rules.check_answers('text', [record(*answers)])


def test_mistakes_of_the_caller():
  with pytest.raises(ValueError, match="rule 'words': expected one of text"):
    answer_rules.check_answers('words', [])
  with pytest.raises(ValueError, match="rule 'words': expected one of text"):
    answer_rules.score_questions('words', [], [])
  with pytest.raises(ValueError, match='1 predictions for 0 questions'):
    answer_rules.score_questions('text', ['x'], [])
