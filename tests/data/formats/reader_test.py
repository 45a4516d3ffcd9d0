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

from vtokens import errors
from vtokens.data import formats, records

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
  ({**GOOD, 'id': None}, 'id: found null, expected a string'),
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
  ({**GOOD, 'passages': None}, 'passages: found null, expected an array'),
  (
    {**GOOD, 'passages': ['a', 5]},
    'passages[1]: found a number (5), expected a string or an object',
  ),
  (_passage(text=5), 'passages[1].text: found a number (5), expected a string'),
  (_passage(title=None), 'passages[1].title: found null, expected a string'),
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
  ({**GOOD, 'passages': ['a', '']}, 'passages[1]: found an empty string'),
  (_passage(text='\t'), 'passages[1].text: found a blank string'),
  # Characters.
  (
    {**GOOD, 'question': 'a\ud800b'},
    'question: found the character U+D800 at position 2, expected text '
    'without control characters and lone surrogates',
  ),
  ({**GOOD, 'question': '\x00'}, 'question: found the character U+0000'),
  ({**GOOD, 'id': 'a\x1b[0m'}, 'id: found the character U+001B at position 2'),
  ({**GOOD, 'answers': ['\x7f']}, 'answers[0]: found the character U+007F'),
  (_passage(title='\x0b'), 'passages[1].title: found the character U+000B'),
  (_passage(id='\x85'), 'passages[1].id: found the character U+0085'),
  (_passage(text='a\x92s'), 'passages[1].text: found the character U+0092'),
  (_passage(text='\udfff'), 'passages[1].text: found the character U+DFFF'),
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


def test_duplicate_id_in_another_file_names_the_first(tmp_path):
  first = _write(tmp_path / 'a.jsonl', _lines({**GOOD, 'id': 'x'}, GOOD))
  second = _write(tmp_path / 'b.jsonl', _lines(GOOD, {**GOOD, 'id': 'y'}))
  with pytest.raises(records.RecordError) as error:
    _read(first, second)
  assert f'{second}:1: id: found q1, which {first}:2' in str(error.value)
  found, _ = _skipping(first, second)
  assert [r.id for r in found] == ['x', 'q1', 'y']


def test_default_ids_of_two_files_of_one_name_collide(tmp_path):
  paths = []
  for folder in 'ab':
    (tmp_path / folder).mkdir()
    paths.append(
      _write(tmp_path / folder / 'train.jsonl', _lines(_without('id')))
    )
  with pytest.raises(records.RecordError) as error:
    _read(*paths)
  assert (
    f'{paths[1]}:1: id: found train:1 (made from file name and line number), '
    f'which {paths[0]}:1 has too'
  ) in str(error.value)


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
    if noise.strip():
      with pytest.raises(records.RecordError):
        _read(path)
