"""Tests of vtokens.data.formats.reader, and of our own format."""

import bz2
import dataclasses
import gzip
import json
import lzma
import sys
import tempfile

import hypothesis
import pyarrow as pa
import pytest
from etils import epath
from hypothesis import strategies as st

from vtokens.data import formats, records
from vtokens.host import errors

GOOD = {
  'id': 'q1',
  'dataset': 'squad',
  'question': 'Who wrote Hamlet?',
  'answers': ['Shakespeare', 'William Shakespeare'],
  'passages': [
    {'id': 'p1', 'title': 'Hamlet', 'text': 'A play by Shakespeare.'},
    {'id': 'p2', 'title': '', 'text': 'A town.'},
  ],
}
RECORD = records.Record(
  id='q1',
  dataset='squad',
  question='Who wrote Hamlet?',
  answers=('Shakespeare', 'William Shakespeare'),
  passages={
    'given': (
      records.Passage('p1', 'Hamlet', 'A play by Shakespeare.'),
      records.Passage('p2', '', 'A town.'),
    )
  },
)


def _without(*keys):
  return {key: value for key, value in GOOD.items() if key not in keys}


def _lines(*objects):
  return b''.join(json.dumps(o).encode() + b'\n' for o in objects)


def _name(parameter):
  # A test is not named by a file's content.
  return parameter if isinstance(parameter, str) else 'content'


def _read(*paths, **kwargs):
  return formats.read_all(paths, **kwargs)


def _skipping(*paths):
  """(records, messages) with bad records left out."""
  report = formats.BadRecords('skip')
  return formats.read_all(paths, report=report), report.messages


def _write(path, content):
  path.write_bytes(content)
  return str(path)


def test_reads_a_record(tmp_path):
  path = _write(tmp_path / 'a.jsonl', _lines(GOOD))
  assert _read(path) == [RECORD]


@pytest.mark.parametrize(
  ('line', 'changes'),
  [
    ({**_without('answers'), 'target': list(RECORD.answers)}, {}),
    ({**GOOD, 'answers': 'Shakespeare'}, {'answers': ('Shakespeare',)}),
    (
      {**_without('answers'), 'target': 'Shakespeare'},
      {'answers': ('Shakespeare',)},
    ),
    ({**_without('passages'), 'ret_passages': GOOD['passages']}, {}),
    (
      {**GOOD, 'target': 'SHAKESPEARE'},
      {'answers': ('SHAKESPEARE', 'Shakespeare', 'William Shakespeare')},
    ),
    ({**GOOD, 'passages': []}, {'passages': {'given': ()}}),
    (_without('passages'), {'passages': {}}),
    (
      {**GOOD, 'passages': ['one', {'text': 'two'}]},
      {
        'passages': {
          'given': (
            records.Passage('', '', 'one'),
            records.Passage('', '', 'two'),
          )
        }
      },
    ),
    (
      {
        **GOOD,
        'passages': [{'text': 'x', 'score': 1.5, 'rank': None}],
      },
      {'passages': {'given': (records.Passage('', '', 'x', 1.5),)}},
    ),
    (
      {**GOOD, 'passages': ['x', {'text': 'y', 'gold': True}]},
      {
        'passages': {
          'gold': (records.Passage('', '', 'y'),),
          'given': (records.Passage('', '', 'x'), records.Passage('', '', 'y')),
        }
      },
    ),
    (
      {**GOOD, 'passages': [{'text': 'y', 'gold': True}]},
      {'passages': {'gold': (records.Passage('', '', 'y'),)}},
    ),
    (
      {**GOOD, 'passages': {'bm25': ['x'], 'e5': [{'text': 'y'}], 'z': []}},
      {
        'passages': {
          'bm25': (records.Passage('', '', 'x'),),
          'e5': (records.Passage('', '', 'y'),),
          'z': (),
        }
      },
    ),
    ({**_without('question'), 'query': GOOD['question']}, {}),
    ({**GOOD, 'id': 7}, {'id': '7'}),
    ({**GOOD, 'type': 'bridge', 'meta': {'a': [1]}}, {}),
    (_without('id'), {'id': 'nq.train:1'}),
    (_without('dataset'), {'dataset': 'nq'}),
    (
      {**GOOD, 'question': ' tab\t line\r\n nbsp\xa0 dash \u2013 \U0001f600 '},
      {'question': ' tab\t line\r\n nbsp\xa0 dash \u2013 \U0001f600 '},
    ),
  ],
)
@pytest.mark.parametrize(
  ('suffix', 'compress'),
  [
    ('', bytes),
    ('.gz', gzip.compress),
    ('.xz', lzma.compress),
    ('.bz2', bz2.compress),
  ],
)
def test_accepted_forms(tmp_path, line, changes, suffix, compress):
  path = tmp_path / f'nq.train.jsonl{suffix}'
  _write(path, compress(_lines(line)))
  assert _read(str(path)) == [dataclasses.replace(RECORD, **changes)]


@pytest.mark.parametrize(
  ('name', 'stem', 'dataset'),
  [
    ('train.jsonl', 'train', 'train'),
    ('train', 'train', 'train'),
    ('nq.dev.2.jsonl.GZ', 'nq.dev.2', 'nq'),
    ('.jsonl', '.jsonl', '.jsonl'),
  ],
)
def test_default_id_and_dataset(tmp_path, name, stem, dataset):
  content = _lines(GOOD, _without('id', 'dataset'))
  if name.endswith('GZ'):
    content = gzip.compress(content)
  found = _read(_write(tmp_path / name, content))
  assert found[1].id == f'{stem}:2'
  assert found[1].dataset == dataset


@pytest.mark.parametrize('end', [b'', b'\n', b'\n\n', b'\n \t\r\n\n'])
def test_blank_lines_at_the_end_are_fine(tmp_path, end):
  content = _lines(GOOD).rstrip() + end
  assert _read(_write(tmp_path / 'a.jsonl', content)) == [RECORD]


def test_windows_files_are_fine(tmp_path):
  other = {**GOOD, 'id': 'q2'}
  content = b'\xef\xbb\xbf' + _lines(GOOD, other).replace(b'\n', b'\r\n')
  found = _read(_write(tmp_path / 'a.jsonl', content))
  assert [r.id for r in found] == ['q1', 'q2']


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
  line = {**GOOD, 'question': 'one\u2028two'}
  content = json.dumps(line, ensure_ascii=False).encode()
  found = _read(_write(tmp_path / 'a.jsonl', content))
  assert found[0].question == 'one\u2028two'


def test_files_and_lines_keep_their_order(tmp_path):
  paths = [
    _write(
      tmp_path / f'{name}.jsonl',
      _lines({**GOOD, 'id': f'{name}1'}, {**GOOD, 'id': f'{name}0'}),
    )
    for name in 'ba'
  ]
  assert [r.id for r in _read(*paths)] == ['b1', 'b0', 'a1', 'a0']


def test_reads_parquet(tmp_path):
  import pyarrow.parquet as pq

  rows = [
    {**_without('passages'), 'passages': {'bm25': GOOD['passages']}},
    {'id': 'q2', 'question': ' ', 'answers': ['That']},
    # Without a dataset or passages: these columns are null.
    {'id': 'q3', 'question': 'What?', 'answers': ['That']},
  ]
  path = str(tmp_path / 'a.parquet')
  pq.write_table(pa.Table.from_pylist(rows), path)
  found, messages = _skipping(path)
  assert found == [
    dataclasses.replace(RECORD, passages={'bm25': RECORD.passages['given']}),
    records.Record('q3', 'a', 'What?', ('That',), {}),
  ]
  assert messages == [
    f'{path}: row 2: question: found a blank string, expected visible text'
  ]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.parquet', b'PAR1')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(
    errors.UserError, match=r"pip install 'vtokens\[parquet\]'"
  ):
    _read(path)


def test_reads_a_file_of_a_package():
  found = _read('package:vtokens.data.quickstart/validation.jsonl.gz')
  assert len(found) == 200
  assert {record.dataset for record in found} == {'squad', 'entityquestions'}
  assert all(len(record.ranked()) == 2 for record in found)


def test_reads_any_epath(tmp_path):
  _write(tmp_path / 'remote.jsonl', _lines(GOOD))
  with epath.testing.mock_epath(
    open=lambda _, path, mode: open(tmp_path / path.split('/')[-1], mode)
  ):
    assert _read('gs://bucket/remote.jsonl') == [RECORD]


def _raw(key, value):
  """GOOD with the JSON text `value` under `key`."""
  text = json.dumps({**_without(key), key: 0})
  return text.replace(f'"{key}": 0', f'"{key}": {value}').encode()


def _passage(**fields):
  return {**GOOD, 'passages': ['fine', {'text': 'fine', **fields}]}


BAD_LINES = [
  # (line, everything that the message has to say after 'file:2: ')
  (b'{"id" 1}', 'line: found no JSON at column 7 (Expecting '),
  (b'{"id": tru', 'line: found no JSON at column 8 (Expecting value)'),
  (b'', 'line: found a blank line before the last record'),
  (b'  \t', 'line: found a blank line before the last record'),
  (b'{} {}', 'line: found no JSON at column 4 (Extra data)'),
  (_raw('question', '"a\tb"'), 'line: found no JSON at column '),
  (b'[' * 100_000, 'line: found JSON that cannot be parsed'),
  (_raw('n', '9' * 5000), 'line: found JSON that cannot be parsed'),
  (b'[]', 'record: found an array, expected one JSON object'),
  (b'"abc"', 'record: found a string ("abc"), expected one JSON object'),
  (b'null', 'record: found null, expected one JSON object'),
  (
    b'{"question": "caf\xe9 ?"}',
    'line: found byte 0xe9 at position 18 (invalid continuation byte), '
    'expected UTF-8',
  ),
  (
    b'\xff\xfe{\x00}\x00',
    'line: found byte 0xff at position 1 (invalid start byte)',
  ),
  # Keys.
  (
    _raw('id', '"q2", "id": "q3"'),
    'id: found more than once, expected once',
  ),
  (_raw('x', '1, "x": 2, "x": 3'), 'x: found more than once, expected once'),
  (
    _raw('passages', '["a", {"text": "b", "text": "c"}]'),
    'passages[1].text: found more than once, expected once',
  ),
  (
    _without('question'),
    'question or query: missing, found only id, dataset, answers, passages, '
    'expected this key too',
  ),
  (_without('answers'), 'answers or target: missing, found only id, '),
  ({}, 'answers or target: missing, found only no key'),
  (
    {**GOOD, 'passages': ['a', 'b', {'title': 't', 'id': 'i'}]},
    'passages[2].text: missing, found only title, id, expected this key too',
  ),
  (
    {**GOOD, 'query': 'x'},
    'question and query: found both, expected one: they mean the same',
  ),
  (
    {**GOOD, 'ret_passages': []},
    'passages and ret_passages: found both, expected one',
  ),
  # Types.
  ({**GOOD, 'id': 7.5}, 'id: found a number (7.5), expected a string'),
  ({**GOOD, 'dataset': ['a']}, 'dataset: found an array, expected a string'),
  ({**GOOD, 'question': {}}, 'question: found an object, expected a string'),
  (
    {**GOOD, 'answers': {'text': 'x'}},
    'answers: found an object, expected a string or an array of strings',
  ),
  ({**GOOD, 'answers': 3.5}, 'answers: found a number (3.5), expected a str'),
  (
    {**GOOD, 'answers': ['yes', True]},
    'answers[1]: found a boolean (true), expected a string',
  ),
  (
    {**_without('answers'), 'target': ['yes', ['no']]},
    'target[1]: found an array, expected a string',
  ),
  (
    {**GOOD, 'passages': 'x' * 99},
    f'passages: found a string ("{"x" * 36}...), expected an array of passages',
  ),
  (
    {**GOOD, 'passages': ['a', 5]},
    'passages[1]: found a number (5), expected a string or an object',
  ),
  (_passage(text=5), 'passages[1].text: found a number (5), expected a string'),
  (_passage(id=True), 'passages[1].id: found a boolean (true), expected a str'),
  (
    {**_without('passages'), 'ret_passages': ['a', {'text': False}]},
    'ret_passages[1].text: found a boolean (false), expected a string',
  ),
  (_passage(gold=1), 'passages[1].gold: found a number (1), expected'),
  (
    _passage(score='x'),
    'passages[1].score: found a string ("x")',
  ),
  (
    _raw('passages', '[{"text": "x", "score": NaN}]'),
    'passages[0].score: found',
  ),
  (_raw('passages', '{"a": [], "a": []}'), 'passages.a: found more than once'),
  ({**GOOD, 'passages': {'a': 'x'}}, 'passages.a: found a string ("x")'),
  (
    {**GOOD, 'passages': {'': []}},
    'passages: the name of a retriever: fo',
  ),
  (
    {**GOOD, 'retrieved': ['p1']},
    'retrieved[0]: found a string ("p1")',
  ),
  (
    {**GOOD, 'retrieved': [['a', 'b']]},
    'retrieved[0][1]: found a string ("b")',
  ),
  # Long.
  (
    _passage(text='\u20ac' * 400_000),
    'passages[1].text: found a text of 1,200,000 bytes, expected at most '
    '1,048,576 (max_text_bytes)',
  ),
  # Blank.
  ({**GOOD, 'id': ''}, 'id: found an empty string, expected visible text'),
  ({**GOOD, 'dataset': ' '}, 'dataset: found a blank string'),
  ({**GOOD, 'question': ''}, 'question: found an empty string'),
  ({**GOOD, 'question': ' \xa0\n'}, 'question: found a blank string'),
  (
    {**GOOD, 'answers': []},
    'answers: found an empty array, expected at least one answer',
  ),
  ({**GOOD, 'answers': ''}, 'answers: found an empty string'),
  ({**GOOD, 'answers': ['a', '  ']}, 'answers[1]: found a blank string'),
  # Null is absent.
  ({**GOOD, 'answers': None}, 'answers or target: missing, found only id, '),
  ({**GOOD, 'question': None}, 'question or query: missing, found only id, '),
  ({**GOOD, 'answers': [None]}, 'answers: found an empty array'),
  # Characters.
  ({**GOOD, 'question': '\x00'}, 'question: found a blank string'),
  # Ids.
  (GOOD, 'id: found q1, which {path}:1 has too, expected an id of its own'),
]


@pytest.mark.parametrize(('line', 'expected'), BAD_LINES, ids=_name)
def test_bad_line(tmp_path, line, expected):
  last = {**GOOD, 'id': 'last'}
  line = line if isinstance(line, bytes) else json.dumps(line).encode()
  path = _write(
    tmp_path / 'bad.jsonl', _lines(GOOD) + line + b'\n' + _lines(last)
  )
  expected = f'{path}:2: {expected.replace("{path}", path)}'

  with pytest.raises(records.RecordError) as error:
    _read(path)
  message = str(error.value)
  assert isinstance(error.value, errors.UserError)
  assert message.startswith(expected)
  assert ', expected ' in message
  assert message.endswith(
    '. Fix the file, or leave out what is bad in it with '
    '--config.data.on_bad_record=skip'
  )
  assert len(message.splitlines()) == 1

  found, messages = _skipping(path)
  assert [r.id for r in found] == ['q1', 'last']
  assert len(messages) == 1
  assert messages[0].startswith(expected)
  assert len(messages[0].splitlines()) == 1


def test_one_question_in_two_files_names_the_first(tmp_path):
  first = _write(tmp_path / 'a.jsonl', _lines({**GOOD, 'id': 'x'}, GOOD))
  second = _write(tmp_path / 'b.jsonl', _lines(GOOD, {**GOOD, 'id': 'y'}))
  with pytest.raises(records.RecordError) as error:
    _read(first, second)
  assert (
    f'{second}:1: id: found b/q1, which {first}:2, with the same question, has '
    'too, expected an id of its own'
  ) in str(error.value)
  found, _ = _skipping(first, second)
  assert [r.id for r in found] == ['a/x', 'a/q1', 'b/y']


def test_a_source_given_twice(tmp_path):
  path = _write(tmp_path / 'a.jsonl', _lines(GOOD))
  for again in (path, f'nq={path}', f'{tmp_path}/./a.jsonl'):
    with pytest.raises(records.RecordError, match='it twice among the sources'):
      _skipping(path, again)


def _folders(tmp_path, names, *rows):
  """A file of each name, whose questions are its own."""
  paths = []
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    own = [{**row, 'question': f'{name} {row["question"]}'} for row in rows]
    paths.append(_write(path, _lines(*own)))
  return paths


FLASHRAG = [
  {'id': f'train_{i}', 'question': f'{i}?', 'golden_answers': ['a']}
  for i in range(2)
]
PLAIN = [_without('id', 'dataset')]


@pytest.mark.parametrize(
  ('names', 'rows', 'ids', 'datasets'),
  [
    (
      ['nq/train.jsonl', 'triviaqa/train.jsonl'],
      FLASHRAG,
      ['nq/train_0', 'nq/train_1', 'triviaqa/train_0', 'triviaqa/train_1'],
      ['nq', 'nq', 'triviaqa', 'triviaqa'],
    ),
    # FiD: ids are made from name and line.
    (
      ['NQ/train.jsonl', 'TQA/train.jsonl'],
      PLAIN,
      ['NQ/train:1', 'TQA/train:1'],
      ['NQ', 'TQA'],
    ),
    # The nearest folder that differs.
    (
      ['nq/raw/train.jsonl', 'tqa/raw/train.jsonl'],
      PLAIN,
      ['nq/train:1', 'tqa/train:1'],
      ['nq', 'tqa'],
    ),
    # Another file does not matter, nor does another stem.
    (
      ['nq/train.jsonl', 'tqa/train.jsonl', 'squad.train.jsonl'],
      PLAIN,
      ['nq/train:1', 'tqa/train:1', 'squad.train:1'],
      ['nq', 'tqa', 'squad'],
    ),
    (
      ['nq.dev.jsonl', 'nq.test.jsonl', 'tqa.dev.jsonl'],
      FLASHRAG[:1],
      ['nq.dev/train_0', 'nq.test/train_0', 'tqa.dev/train_0'],
      ['nq', 'nq', 'tqa'],
    ),
    (
      ['nq/dev.jsonl', 'tqa/dev.jsonl', 'nq/test.jsonl', 'tqa/test.jsonl'],
      FLASHRAG[:1],
      [
        f'{name}/train_0'
        for name in ('nq/dev', 'tqa/dev', 'nq/test', 'tqa/test')
      ],
      ['nq', 'tqa', 'nq', 'tqa'],
    ),
    # No ids are equal: they stay as they are.
    (
      ['nq.dev.jsonl', 'tqa.dev.jsonl'],
      PLAIN,
      ['nq.dev:1', 'tqa.dev:1'],
      ['nq', 'tqa'],
    ),
    # Alone, the stem is the name.
    (['nq/train.jsonl'], FLASHRAG[:1], ['train_0'], ['train']),
    # Shards.
    (
      [f'nq/test-0000{i}-of-00002.jsonl' for i in range(2)],
      PLAIN,
      [f'test-0000{i}-of-00002:1' for i in range(2)],
      ['test', 'test'],
    ),
    (
      [f'c4-test.0000{i}-of-00002.jsonl' for i in range(2)],
      PLAIN,
      [f'c4-test.0000{i}-of-00002:1' for i in range(2)],
      ['c4-test', 'c4-test'],
    ),
    (
      [f'test.jsonl-0000{i}-of-00002' for i in range(2)],
      PLAIN,
      [f'test-0000{i}-of-00002:1' for i in range(2)],
      ['test', 'test'],
    ),
    (['test-00000-of-00001-a09b74b3ef9c3b56.jsonl'], PLAIN, None, ['test']),
    (['best-3-of-5.jsonl'], PLAIN, ['best-3-of-5:1'], ['best-3-of-5']),
    (
      [f'{n}/a-0000{i}-of-00002.jsonl' for n in ('nq', 'tqa') for i in (0, 1)],
      PLAIN,
      [f'a-0000{i}-of-00002:1' for _ in range(2) for i in range(2)],
      ['nq', 'nq', 'tqa', 'tqa'],
    ),
  ],
)
def test_data_sets_and_ids_of_files(tmp_path, names, rows, ids, datasets):
  paths = _folders(tmp_path, names, *rows)
  found = _read(*paths)
  if ids is not None and 'of-00002' in names[-1] and len(names) == 4:
    ids = [f'{d}/{i}' for d, i in zip(datasets, ids, strict=True)]
  assert [r.dataset for r in found] == datasets
  assert ids is None or [r.id for r in found] == ids
  # Whatever the order of the files, the same records.
  assert set(map(repr, _read(*paths[::-1]))) == set(map(repr, found))


def test_the_user_names_a_data_set(tmp_path, monkeypatch):
  rows = [*FLASHRAG, {**GOOD, 'id': 'q'}]
  paths = _folders(tmp_path, ['nq/train.jsonl', 'triviaqa/train.jsonl'], *rows)
  found = _read(f'open={paths[0]}', paths[1])
  assert [(r.id, r.dataset) for r in found] == [
    ('open/train_0', 'open'),
    ('open/train_1', 'open'),
    ('open/q', 'open'),
    ('triviaqa/train_0', 'triviaqa'),
    ('triviaqa/train_1', 'triviaqa'),
    # A row's own name comes before the folder's.
    ('triviaqa/q', 'squad'),
  ]
  found = _read(f'a={paths[0]}', f'a={paths[1]}', dataset='b')
  assert {r.dataset for r in found} == {'a'}
  assert found[0].id == 'a/nq/train_0' or found[0].id.endswith('train_0')
  # A path that looks like it is a path.
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'lang=en').mkdir()
  _write(tmp_path / 'lang=en/a.jsonl', _lines(_without('dataset')))
  assert _read('lang=en/a.jsonl')[0].dataset == 'a'
  with pytest.raises(
    records.RecordError, match=r'^en/a\.jsonl: cannot be read'
  ):
    _read('lang2=en/a.jsonl')


def test_ids_are_unique_in_all_shards(tmp_path):
  names = [f'test-0000{i}-of-00002.jsonl' for i in range(2)]
  paths = _folders(tmp_path, names, {**GOOD, 'id': 'q'})
  with pytest.raises(records.RecordError) as error:
    _read(*paths)
  assert str(error.value).startswith(
    f'{paths[1]}:1: id: found q, which {paths[0]}:1 has too'
  )


REPLACED = 'rows with control characters, which were replaced'


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'question': 'a\ud800b'}, {'question': 'a b'}),
    ({'question': 'a\x00b\x07'}, {'question': 'a b '}),
    ({'question': '\x91The Ferry\x92'}, {'question': '\u2018The Ferry\u2019'}),
    ({'question': 'a\x81'}, {'question': 'a '}),
    ({'id': 'a\x1b[0m'}, {'id': 'a [0m'}),
    ({'answers': ['x\x7f']}, {'answers': ('x ',)}),
    (
      {
        'passages': {'b\x85': ['x\x0b', {'text': 'x\udfff', 'title': '\udcff'}]}
      },
      {
        'passages': {
          'b\u2026': (
            records.Passage('', '', 'x '),
            records.Passage('', ' ', 'x '),
          )
        }
      },
    ),
  ],
)
def test_control_characters_are_replaced_and_counted(
  tmp_path, changes, expected
):
  import pyarrow.parquet as pq

  row = {**GOOD, **changes}
  wanted = [dataclasses.replace(RECORD, **expected)]
  lines = _write(tmp_path / 'a.jsonl', _lines(row))
  array = _write(tmp_path / 'b.json', json.dumps([row]).encode())
  paths = [lines, array]
  if not any(
    '\ud800' <= c <= '\udfff' for c in repr(row)
  ) and '\\ud' not in repr(row):
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / 'c.parquet')
    paths.append(str(tmp_path / 'c.parquet'))
  for path in paths:
    report = formats.BadRecords()
    assert _read(path, report=report) == wanted
    assert report.notes == {REPLACED: 1}


@pytest.mark.parametrize(
  'char', ['\u2028', '\ufeff', '\ufffe', '\xad', '\u200b']
)
def test_other_characters_are_kept(tmp_path, char):
  row = {**GOOD, 'question': f'a{char}b{char}'}
  report = formats.BadRecords()
  for ascii_only in (True, False):
    content = json.dumps(row, ensure_ascii=ascii_only).encode()
    path = _write(tmp_path / 'a.jsonl', content)
    (record,) = _read(path, report=report)
    assert record.question == row['question']
  assert not report.notes


def test_null_is_absent_at_every_level(tmp_path):
  import pyarrow.parquet as pq

  row = {
    'id': None,
    'dataset': None,
    'question': 'What?',
    'query': None,
    'answers': [None, 'That'],
    'target': None,
    'golden_answers': None,
    'ctxs': None,
    'passages': [
      {'id': None, 'title': None, 'text': 'x', 'score': None, 'gold': None},
      None,
      {'id': '1', 'title': 'T', 'text': None, 'score': 2.0, 'gold': None},
      {'id': '2', 'title': 'U', 'text': 'y', 'score': 1.0, 'gold': True},
    ],
    'retrieved': None,
  }
  for name in ('a.jsonl', 'a.json', 'a.parquet'):
    path = str(tmp_path / name)
    if name == 'a.parquet':
      pq.write_table(pa.Table.from_pylist([row, {**row, 'id': 'q2'}]), path)
    else:
      value = [row] if name == 'a.json' else row
      (tmp_path / name).write_text(json.dumps(value))
    report = formats.BadRecords()
    record = _read(path, report=report)[0]
    gold = records.Passage('2', 'U', 'y', 1.0)
    assert record == records.Record(
      'a:1',
      'a',
      'What?',
      ('That',),
      {'gold': (gold,), 'given': (records.Passage('', '', 'x'), gold)},
    )
    assert report.notes['blank passages left out'] >= 1


def test_blank_passages_are_left_out_and_counted(tmp_path):
  row = {
    **GOOD,
    'passages': {
      'bm25': ['', {'title': 'T', 'text': ' \xa0'}, 'x', {'text': '\x00'}],
      'e5': ['\t'],
    },
  }
  report = formats.BadRecords()
  (record,) = _read(_write(tmp_path / 'a.jsonl', _lines(row)), report=report)
  assert record.passages == {
    'bm25': (records.Passage('', '', 'x'),),
    'e5': (),
  }
  assert report.notes == {'blank passages left out': 4, REPLACED: 1}


@pytest.mark.parametrize(
  ('extra', 'keys'),
  [
    ({'documents': ['x']}, 'documents'),
    ({'retrieved_docs': {'a': [{'text': 'x'}]}}, 'retrieved_docs'),
    ({'answer_aliases': ['x']}, 'answer_aliases'),
    ({'answer': 'x'}, 'answer'),
    ({'groundTruth': 'x', 'evidence': 'y'}, 'groundTruth, evidence'),
    ({'positive_ids': ['1']}, 'positive_ids'),
    ({'ground_truth': 'x'}, 'ground_truth'),
    ({'supporting_facts': [['t', 0]]}, 'supporting_facts'),
    ({'search_results': [{'page_snippet': 'x'}]}, 'search_results'),
    ({'answer_0': 'x', 'text': 'y'}, 'answer_0, text'),
  ],
)
def test_keys_that_no_reader_uses(tmp_path, extra, keys):
  path = _write(tmp_path / 'a.jsonl', _lines({**GOOD, **extra}))
  with pytest.raises(records.RecordError) as error:
    _read(path)
  assert str(error.value).startswith(
    f'{path}:1: {keys}: found keys that look like passages or answers and are '
    'not read together with id, dataset, question, answers, passages, expected '
  )


@pytest.mark.parametrize(
  'extra',
  [
    {'answer_in_retrieved': 3, 'has_answer': True, 'num_passages': 5},
    {'answer_type': 'span', 'answer_start': [3], 'context_id': 'c1'},
    {'normalized_aliases': ['x'], 'predicted_answer': 'x', 'response': 'y'},
    {'metadata': {'answers': ['x'], 'docs': ['y']}, 'url': 'u', 'title': 't'},
    {'documents': [], 'answer': '', 'positive': None, 'evidence': {}},
    {'type': 'bridge', 'level': 'hard', 'source': 'web', 'choices': ['a', 'b']},
    {'rationale': 'x', 'question_decomposition': [{'answer': 'x'}]},
    {'fakeanswer': 'x', 'wrong_answers': ['y'], 'doc_url': 'z'},
    {'search_query': 'x', 'search_queries': ['y'], 'search_time': 'z'},
    {'retrieval_method': 'x', 'retrieval_model': 'y', 'answerKey': 'A'},
    {'knowledge_cutoff': '2021', 'page_views': 'many', 'fact_checked': 'no'},
    {'story': None},
  ],
)
def test_metadata_does_not_block(tmp_path, extra):
  path = _write(tmp_path / 'a.jsonl', _lines({**GOOD, **extra}))
  assert _read(path) == [RECORD]


def test_the_letter_of_a_choice_is_no_answer(tmp_path):
  row = {
    'question': 'Which?',
    'options': {'A': 'one', 'B': 'two'},
    'answer': 'B',
  }
  path = _write(tmp_path / 'a.jsonl', _lines(row))
  with pytest.raises(
    records.RecordError, match='options: found choices, and B'
  ):
    _read(path)


def test_the_id_of_a_skipped_line_is_free(tmp_path):
  path = _write(tmp_path / 'a.jsonl', _lines({**GOOD, 'question': ''}, GOOD))
  found, messages = _skipping(path)
  assert found == [RECORD]
  assert len(messages) == 1


def test_skipped_lines_are_reported_in_order(tmp_path):
  bad = {**GOOD, 'question': ''}
  path = _write(tmp_path / 'a.jsonl', _lines(bad, GOOD) + b'\n\n{\n[]\n')
  good = _write(tmp_path / 'b.jsonl', _lines({**GOOD, 'id': 'q2'}, bad))
  _, messages = _skipping(path, good)
  assert [m.split(': ')[0] for m in messages] == [
    f'{path}:1',
    f'{path}:3',
    f'{path}:4',
    f'{path}:5',
    f'{path}:6',
    f'{good}:2',
  ]


MANY = _lines(*({**GOOD, 'id': f'q{i}'} for i in range(2000)))


@pytest.mark.parametrize('on_bad_record', ['error', 'skip'])
@pytest.mark.parametrize(
  ('name', 'content', 'expected'),
  [
    ('a.jsonl.gz', gzip.compress(MANY, mtime=0)[:-20], 'EOFError'),
    ('a.jsonl.gz', gzip.compress(MANY, mtime=0)[:-4], 'EOFError'),
    ('a.jsonl.xz', lzma.compress(MANY)[:-20], 'EOFError'),
    ('a.jsonl.bz2', bz2.compress(MANY)[:-20], 'EOFError'),
    ('a.jsonl.gz', MANY, 'BadGzipFile'),
    ('a.jsonl.xz', MANY, 'LZMAError'),
    ('a.jsonl.bz2', MANY, 'OSError'),
    (
      'a.jsonl.gz',
      gzip.compress(MANY, mtime=0)[:-8] + b'\0' * 8,
      'BadGzipFile',
    ),
    (
      'a.jsonl.gz',
      gzip.compress(MANY, mtime=0)[:10] + b'\xff' * 100,
      'error: Error -3 while decompressing data',
    ),
  ],
  ids=_name,
)
def test_damaged_file_is_always_an_error(
  tmp_path, name, content, expected, on_bad_record
):
  path = _write(tmp_path / name, content)
  with pytest.raises(records.RecordError) as error:
    _read(path, report=formats.BadRecords(on_bad_record))
  message = str(error.value)
  assert message.startswith(f'{path}: cannot be read to its end: {expected}')
  assert len(message.splitlines()) == 1


@pytest.mark.parametrize('on_bad_record', ['error', 'skip'])
def test_missing_file_is_always_an_error(tmp_path, on_bad_record):
  good = _write(tmp_path / 'good.jsonl', _lines(GOOD))
  for path in (str(tmp_path / 'none.jsonl.gz'), str(tmp_path)):
    with pytest.raises(records.RecordError) as error:
      _read(good, path, report=formats.BadRecords(on_bad_record))
    assert str(error.value).startswith(f'{path}: cannot be read')


def test_missing_client_of_a_remote_path_is_an_error():
  def no_client(*_):
    raise ImportError('Please install gcsfs')

  with (
    epath.testing.mock_epath(open=no_client),
    pytest.raises(records.RecordError, match=r'^gs://b/a\.jsonl: .* gcsfs'),
  ):
    _read('gs://b/a.jsonl')


@pytest.mark.parametrize('on_bad_record', ['error', 'skip'])
@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('a.jsonl', b''),
    ('a.jsonl', b'\n \n'),
    ('a.jsonl', b'\xef\xbb\xbf'),
    ('a.jsonl.gz', b''),
    ('a.jsonl.gz', gzip.compress(b'', mtime=0)),
  ],
)
def test_empty_file_is_always_an_error(tmp_path, name, content, on_bad_record):
  good = _write(tmp_path / 'good.jsonl', _lines(GOOD))
  path = _write(tmp_path / name, content)
  with pytest.raises(records.RecordError) as error:
    _read(good, path, report=formats.BadRecords(on_bad_record))
  assert str(error.value) == (
    f'{path}: found no record, expected at least one; the file is empty'
  )


def test_file_of_bad_lines_only_is_an_error(tmp_path):
  good = _write(tmp_path / 'good.jsonl', b'{\n' + _lines(GOOD))
  path = _write(tmp_path / 'a.jsonl', b'{}\n[]\n')
  with pytest.raises(records.RecordError) as error:
    _skipping(good, path)
  assert str(error.value).startswith(
    f'{path}: found no record, expected at least one; none is valid; '
    f'the first: {path}:1: answers or target: missing'
  )


def test_file_of_unanswerable_questions_only_is_an_error(tmp_path):
  row = {**_without('answers'), 'answerable': False}
  path = _write(tmp_path / 'a.jsonl', _lines(row))
  with pytest.raises(records.RecordError) as error:
    _skipping(path)
  assert f'the first: {path}:1: ' in str(error.value)
  assert 'config.data.unanswerable=refuse' in str(error.value)
  [kept] = _read(path, report=formats.BadRecords(on_unanswerable='keep'))
  assert kept.answers == ()


def test_wrong_arguments(tmp_path):
  path = _write(tmp_path / 'a.jsonl', _lines(GOOD))
  with pytest.raises(records.RecordError, match='at least one'):
    formats.read_all([])
  # At the call, not when the first record is asked for.
  with pytest.raises(TypeError, match=r'sources is the string .* a list'):
    formats.read_records(path, report=formats.BadRecords())
  with pytest.raises(TypeError, match=r'corpus is the string .* a list'):
    formats.read_all([path], corpus=path)
  with pytest.raises(ValueError, match="'last', expected 'first' or 'all'"):
    formats.read_all([path], turns='last')
  with pytest.raises(ValueError, match="'ignore', expected 'error' or 'skip'"):
    formats.BadRecords('ignore')


_ANY = st.text(
  st.characters(exclude_categories=['Cs', 'Cc'], include_characters='\t\n\r')
)
_VISIBLE = _ANY.filter(str.strip)
_PASSAGE = st.builds(
  records.Passage,
  id=_ANY,
  title=_ANY,
  text=_VISIBLE,
  score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
_RECORD = st.builds(
  records.Record,
  id=_VISIBLE,
  dataset=_VISIBLE,
  question=_VISIBLE,
  answers=st.lists(_VISIBLE, min_size=1, max_size=3).map(tuple),
  passages=st.dictionaries(
    _VISIBLE, st.lists(_PASSAGE, max_size=3).map(tuple), max_size=2
  ),
)


@hypothesis.settings(deadline=None)
@hypothesis.given(
  st.lists(_RECORD, min_size=1, max_size=4, unique_by=lambda r: r.id),
  st.booleans(),
  st.sampled_from(['.jsonl', '.jsonl.gz', '.jsonl.xz', '.jsonl.bz2']),
)
def test_what_is_written_is_read(expected, ensure_ascii, suffix):
  content = ''.join(
    json.dumps(dataclasses.asdict(r), ensure_ascii=ensure_ascii) + '\n'
    for r in expected
  ).encode()
  compress = {
    '.gz': gzip.compress,
    '.xz': lzma.compress,
    '.bz2': bz2.compress,
  }.get(epath.Path(suffix).suffix, bytes)
  with tempfile.TemporaryDirectory() as folder:
    path = _write(epath.Path(folder) / f'a{suffix}', compress(content))
    assert _read(path) == expected


@hypothesis.settings(deadline=None)
@hypothesis.given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_with_a_record_error(noise):
  content = _lines(GOOD) + noise
  with tempfile.TemporaryDirectory() as folder:
    path = _write(epath.Path(folder) / 'a.jsonl', content)
    assert _skipping(path)[0] == [RECORD]
    # A mark of byte order at the start of a line is none of its text.
    if noise.replace(b'\xef\xbb\xbf', b'').strip():
      with pytest.raises(records.RecordError):
        _read(path)
