"""Tests of vtokens.data.checks and vtokens.data.fields."""

import json
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from vtokens.data import fields
from vtokens.data.checks import BadRecord, BadRecords, Kind, printable
from vtokens.data.records import RecordError

BAD = BadRecord(Kind.EMPTY, 'text: found nothing')


def test_error_says_place_reason_and_what_to_do():
  report = BadRecords(flag='--config.records.bad=skip')
  with pytest.raises(RecordError) as error:
    report.add('a.jsonl:3', BAD)
  assert str(error.value) == (
    'a.jsonl:3: text: found nothing. Fix the file, or leave out what is bad in '
    'it with --config.records.bad=skip'
  )


def test_account_of_what_was_left_out(tmp_path):
  report = BadRecords('skip')
  report.num_good = 5
  report.add('a.jsonl:3', BAD)
  report.add('a.jsonl:4', BAD)
  report.add('b.json: [2]', BadRecord(Kind.UNANSWERABLE, 'no answer'))
  report.notes['records without passages'] += 2
  path = tmp_path / 'new' / 'report.json'
  report.write(path)
  assert json.loads(path.read_text()) == {
    'good': 5,
    'left_out': 3,
    'left_out_by_kind': {'empty': 2, 'unanswerable': 1},
    'notes': {
      'questions left out: their source says they have no answer': 1,
      'records without passages': 2,
    },
    'skipped': [
      {'place': 'a.jsonl:3', 'kind': 'empty', 'reason': str(BAD)},
      {'place': 'a.jsonl:4', 'kind': 'empty', 'reason': str(BAD)},
      {'place': 'b.json: [2]', 'kind': 'unanswerable', 'reason': 'no answer'},
    ],
  }
  assert [p.name for p in path.parent.iterdir()] == ['report.json']


def test_unanswerable_has_a_policy_of_its_own():
  bad = BadRecord(Kind.UNANSWERABLE, 'no answer')
  BadRecords('error').add('a:1', bad)
  with pytest.raises(RecordError, match=r'^a:1: no answer$'):
    BadRecords('skip', on_unanswerable='error').add('a:1', bad)
  with pytest.raises(ValueError, match='on_unanswerable is'):
    BadRecords(on_unanswerable='never')


def check(text, limit=1 << 20):
  return fields.RowFields({'t': text}, '', limit).text('t')


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(st.characters(exclude_categories=[])))
def test_text_is_what_was_given_without_control_characters(text):
  # By definition: Cc but \t \n \r, and Cs.
  bad = '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]'
  read = fields.RowFields({'t': text}, '', 1 << 20)
  try:
    found = read.text('t')
  except BadRecord as e:
    # Files that are read as a whole have their bad bytes as these.
    is_byte = re.search('[\udc80-\udcff]', text)
    assert e.kind is (Kind.INVALID_UTF8 if is_byte else Kind.EMPTY)
    assert is_byte or not re.sub(bad, ' ', text).strip()
    assert str(e).isprintable()
    return
  assert found.encode()
  assert len(found) == len(text)
  for old, new in zip(text, found, strict=True):
    if not re.match(bad, old):
      assert new == old
    elif '\x80' <= old <= '\x9f':
      windows = bytes([ord(old)]).decode('cp1252', 'ignore')
      assert new == (windows or ' ')
    else:
      assert new == ' '
  assert bool(read.notes) == bool(re.search(bad, text))


@hypothesis.settings(deadline=None)
@hypothesis.given(
  st.text(st.characters(min_codepoint=0xA1, exclude_categories=['Cs', 'Z'])),
  st.integers(1, 30),
)
def test_limit_is_in_bytes(text, limit):
  text = 'x' + text
  if len(text.encode()) <= limit:
    assert check(text, limit) == text
  else:
    with pytest.raises(BadRecord, match=rf'at most {limit} \(max_text_bytes\)'):
      check(text, limit)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text())
def test_printable_is_short_and_of_one_line(text):
  assert len(printable(text)) <= 40
  assert printable(text).isprintable()


def test_objects_may_be_columns():
  columns = {'a': [1, 2], 'b': ['x', 'y']}
  read = fields.RowFields({'k': columns}, 'row', 99).objects('k', 'things')
  assert [f.values for f in read] == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
  assert read[1].name('a') == 'row.k[1].a'
  for bad in ({'a': [1], 'b': []}, {'a': 1}, 'x', 5):
    with pytest.raises(BadRecord, match=r'row\.k: found .* an array of things'):
      fields.RowFields({'k': bad}, 'row', 99).objects('k', 'things')


@pytest.mark.parametrize(
  ('value', 'score'),
  [(None, None), (1, 1.0), ('-2.5e1', -25.0), (0, 0.0)],
)
def test_scores(value, score):
  assert fields.as_score(value, 's') == score


@pytest.mark.parametrize(
  'value', ['x', '', 'nan', float('inf'), True, [], 10**400, '1e999']
)
def test_bad_scores(value):
  with pytest.raises(
    BadRecord, match=r'^s: found .* expected a finite number$'
  ):
    fields.as_score(value, 's')
