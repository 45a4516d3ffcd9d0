"""Tests of vtokens.data.files."""

import bz2
import gzip
import json
import lzma
import os
import re
import tracemalloc

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from vtokens.data import checks, corpus, files, formats, records, sources
from vtokens.data.files import (
  Shape,
  compressed_lines,
  file_shapes,
  json_rows,
  table_rows,
)
from vtokens.data.records import RecordError

JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda children: (
    st.lists(children, max_size=4)
    | st.dictionaries(st.text(), children, max_size=4)
  ),
  max_leaves=10,
)


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def items(path):
  return [row.value for row in files.rows(path, Shape.ARRAY)]


ROW = '{"id": "1", "question": "a?", "answers": ["b"]}'
PRETTY = json.dumps({'version': '1', 'data': [{'story': 'x'}]}, indent=2)


@pytest.mark.parametrize(
  ('content', 'shape'),
  [
    ('', Shape.LINES),
    ('what?', Shape.LINES),
    (ROW, Shape.LINES),
    (f'{ROW}\n{ROW}\n', Shape.LINES),
    (f'\ufeff{ROW}\n', Shape.LINES),
    # Broken lines among good ones, or alone.
    ('{"id": \n' + ROW, Shape.LINES),
    ('{"id": \n', Shape.LINES),
    ('[1]', Shape.ARRAY),
    ('\ufeff \n[', Shape.ARRAY),
    ('{"data": []}', Shape.OBJECT),
    (PRETTY, Shape.OBJECT),
    (PRETTY.replace('  ', ''), Shape.OBJECT),
    ('{"query": {}, "query_id": {}}', Shape.OBJECT),
    ('{"7": {"contexts": []}}', Shape.OBJECT),
    ('{"a \\" b?": []}', Shape.OBJECT_OF_ARRAYS),
    ('{\n  "a?": [\n    {}\n  ]\n}', Shape.OBJECT_OF_ARRAYS),
    ('id\ttext\ttitle\n', Shape.TABLE),
    ('"id"\t"question"\tpossible_answers\n', Shape.TABLE),
    ('question and text', Shape.LINES),
    ('1 Q0 doc 1 2.5e-1 bm25\n', Shape.TREC_RUN),
    ('1\tQ0\tdoc\t1\t-3\tAnserini\n', Shape.TREC_RUN),
    ('1 0 doc 1\n', Shape.TREC_QRELS),
    (b'PAR1\x15\x04', Shape.PARQUET),
    ('question,answers\nwho?,me\n', Shape.TABLE),
    ('"id";"question";"answer"\n', Shape.TABLE),
    (',question,answer\n0,a?,b\n', Shape.TABLE),
    ("who painted it\t['Anna B', 'A. B']\n", Shape.QUESTIONS),
    ('who painted it\t["Anna B"]\n', Shape.QUESTIONS),
    ('who?\t"[\'say ""hi""\']"\n', Shape.QUESTIONS),
    ('0\tThe mural was painted.\n', Shape.COLLECTION),
    ('query-id\tcorpus-id\tscore\nq1\td2\t1\n', Shape.TREC_QRELS),
    # Rows of JSON with bad ones before them.
    ('a\tb\tc\n' + ROW, Shape.LINES),
  ],
)
def test_shape(tmp_path, content, shape):
  # No name says what a file is.
  assert files.shape(write(tmp_path / 'file.txt', content)) is shape


@hypothesis.settings(
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.lists(JSON, max_size=5),
  st.sampled_from([None, 0, 3]),
  st.booleans(),
  st.integers(1, 50),
)
def test_arrays_in_chunks_of_any_size(
  tmp_path, monkeypatch, value, indent, ensure_ascii, chunk
):
  monkeypatch.setattr(json_rows, 'CHUNK_BYTES', chunk)
  text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
  content = text.encode('utf-8', 'surrogatepass')
  path = write(tmp_path / 'a.json', content + b' \n')
  if not ensure_ascii:
    content.decode('utf-8', 'surrogateescape')
  assert items(path) == json.loads(content.decode('utf-8', 'surrogateescape'))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('[{"a": 1}, {"a": ', r': \[1\]: found no JSON \(Expecting value'),
    ('[{"a": 1} {"a": 2}]', r': \[1\]: found no JSON \(.* instead of , or \]'),
    ('[{"a": 1},]', r': \[1\]: found no JSON \(Expecting value'),
    ('[', r': \[0\]: found no JSON \(Expecting value'),
    ('[1', r': \[0\]: found no JSON \(the end of the file\)'),
    ('[] []', r': \[0\]: found no JSON \(something after the array\)'),
    ('[' * 100_000, r': \[0\]: found no JSON \(maximum recursion depth'),
  ],
)
def test_broken_arrays(tmp_path, content, message):
  path = write(tmp_path / 'a.json', content)
  with pytest.raises(RecordError, match=message):
    items(path)


def test_keys_that_occur_twice_in_an_array(tmp_path):
  path = write(tmp_path / 'a.json', f'[{ROW}, {{"id": "x", "id": "y"}}]')
  with pytest.raises(RecordError, match=r'\[1\]: id: found more than once'):
    formats.read_all([path])


def peak(consume):
  """Bytes of Python objects at the peak."""
  tracemalloc.start()
  consume()
  size = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return size


@pytest.mark.parametrize('shape', ['lines', 'array', 'table', 'parquet'])
def test_files_are_never_whole_in_memory(tmp_path, shape):
  """12 MB of passages."""
  row = {'text': 'word ' * 800, 'title': 'A title'}
  many = range(3_000)
  path = tmp_path / 'c'
  if shape == 'lines':
    path.write_text(''.join(f'{json.dumps({**row, "id": i})}\n' for i in many))
  elif shape == 'array':
    path.write_text(json.dumps([{**row, 'id': i} for i in many]))
  elif shape == 'table':
    text = '\t'.join(row.values())
    path.write_text(
      '\t'.join(('id', *row)) + '\n' + ''.join(f'{i}\t{text}\n' for i in many)
    )
  else:
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{**row, 'id': i} for i in many])
    pq.write_table(table, path, row_group_size=500)
  report = checks.BadRecords()
  counted = []

  def consume():
    found = corpus.read_corpus([str(path)], report)
    counted.append(sum(1 for _ in found))

  assert peak(consume) < 6e6
  assert counted == [3_000]


def test_records_are_never_all_in_memory(tmp_path):
  rows = [
    {
      'id': f'q{i}',
      'question': 'Who?',
      'answers': ['I'],
      'passages': ['word ' * 800],
      'retrieved': [[f'p{i % 10}', 1.0]],
    }
    for i in range(3_000)
  ]
  path = write(
    tmp_path / 'q.jsonl', ''.join(f'{json.dumps(row)}\n' for row in rows)
  )
  texts = write(
    tmp_path / 'c.jsonl',
    ''.join(f'{json.dumps({"id": f"p{i}", "text": "x"})}\n' for i in range(10)),
  )
  report = checks.BadRecords()
  sizes = []

  def consume():
    found = formats.read_records([path], report=report, corpus=[texts])
    sizes.append(sum(len(record.passages['bm25']) for record in found))

  # 12 MB of text.
  assert peak(consume) < 6e6
  assert sizes == [3_000]


@pytest.mark.parametrize(
  ('content', 'found'),
  [
    ('which river?\tElbe\n', 'values that are tab-separated without a header'),
    ('1\td0\t1\n', 'values that are tab-separated without a header'),
    ('Which?,Elbe\nWho?,Anna\n', 'values that are comma-separated without'),
    ('a;b\nc;d\n', 'values that are semicolon-separated without a header'),
    ('{"id": 1}'.encode('utf-16'), 'UTF-16, write it again as UTF-8'),
    (b'\x1f\x8b\x08\0', 'gzip under a name without .gz'),
    (b'PK\x03\x04', 'a zip archive, unpack it first'),
    ('<!DOCTYPE html>', 'HTML or XML, as a failed download leaves it'),
    ('version https://git-lfs.github.com/spec/v1\n', 'a pointer of Git LFS'),
    (b'x' * 257 + b'ustar', 'a tar archive, unpack it first'),
  ],
)
def test_what_is_no_data_is_named(tmp_path, content, found):
  path = write(tmp_path / 'a', content)
  for read in (
    lambda: formats.read_all([path], report=checks.BadRecords('skip')),
    lambda: list(corpus.read_corpus([path], checks.BadRecords('skip'))),
  ):
    with pytest.raises(RecordError) as error:
      read()
    assert str(error.value).startswith(f'{path}: found {found}')
    assert re.search('[,;] expected ', str(error.value))


def test_questions_of_dpr(tmp_path):
  path = write(
    tmp_path / 'nq-test.qas.csv',
    "who painted the mural\t['Anna B', 'A. B']\n"
    'which river?\t["Elbe"]\n'
    'who said "hi"?\t"[\'say ""hi""\', ""it\'s""]"\n'
    "bad?\t['a' 'b']\nbad?\t[1]\nbad?\n",
  )
  report = checks.BadRecords('skip')
  found = formats.read_all([path], report=report)
  assert [(r.id, r.dataset, r.question, r.answers) for r in found] == [
    ('nq-test.qas:1', 'nq-test', 'who painted the mural', ('Anna B', 'A. B')),
    ('nq-test.qas:2', 'nq-test', 'which river?', ('Elbe',)),
    ('nq-test.qas:3', 'nq-test', 'who said "hi"?', ('say "hi"', "it's")),
  ]
  assert [m.partition(': ')[2] for m in report.messages] == [
    "answers: found ['a' 'b'], expected an array as JSON or Python writes it, "
    'with commas',
    'answers[0]: found a number (1), expected a string',
    'row: found 1 fields, expected 2: question, answers',
  ]


def test_tables_with_commas(tmp_path):
  """As pandas writes them, with lists, quotes, line breaks and empty cells."""
  path = write(
    tmp_path / 'a.csv',
    ',id,question,answers,passages,answer_in_retrieved\n'
    """0,q1,"Which, ""so""?","['Elbe', None]","[{'text': 'x'}]",3\n"""
    '1,,"Two\nlines?",Elbe,,\n'
    '2,q3,Cited?,[citation needed],[],0\n'
    """3,q4,Two?,"('a', 'b')",,\n4,q5,A set?,"{'b', 'a'}",,\n"""
    '5,q6,When?,"(1, 2)",,\n',
  )
  found = formats.read_all([path])
  given = {'given': (records.Passage('', '', 'x'),)}
  assert [(r.id, r.question, r.answers, r.passages) for r in found] == [
    ('q1', 'Which, "so"?', ('Elbe',), given),
    ('a:3', 'Two\nlines?', ('Elbe',), {}),
    ('q3', 'Cited?', ('[citation needed]',), {'given': ()}),
    ('q4', 'Two?', ('a', 'b'), {}),
    ('q5', 'A set?', ('a', 'b'), {}),
    ('q6', 'When?', ('(1, 2)',), {}),
  ]
  assert all(type(r.question) is str for r in found)
  path = write(tmp_path / 'b.csv', 'question,answer,answer\na,b,c\n')
  with pytest.raises(RecordError, match='found the column answer more than'):
    formats.read_all([path])


def test_the_collection_of_ms_marco(tmp_path):
  path = write(tmp_path / 'c.tsv', '0\tA "mural.\n1\tB\tC\n2\t\n3\tD\n')
  report = checks.BadRecords('skip')
  found = list(corpus.read_corpus([path], report))
  assert [(p.id, p.text) for p in found] == [('0', 'A "mural.'), ('3', 'D')]
  assert report.messages == [
    f'{path}:2: row: found 3 fields, expected 2: id, text'
  ]
  with pytest.raises(RecordError, match='passages are given as the corpus'):
    formats.read_all([path])


BOMBS = {'.gz': gzip.compress, '.xz': lzma.compress, '.bz2': bz2.compress}


@pytest.mark.parametrize('suffix', ['', *BOMBS])
@pytest.mark.parametrize(
  ('start', 'end', 'message'),
  [
    (f'{ROW}\n{{"question": "', f'"}}\n{ROW}', ':2: line: found more than 1,0'),
    ('{"question": "', '"}', ':1: line: found more than 1,000,000 bytes'),
    (f'[{ROW}, {{"id": "', '"}]', r': \[1\]: found no JSON \(an item of over'),
    ('{"data": [{"story": "', '"}]}', ': found a JSON document of more than'),
    ('{"0": {"contexts": "', '"}}', ': found a JSON document of more than'),
    ('id\ttext\n1\t"', '"\n', ':2: row: found bad quoting'),
    ('1 Q0 d 1 1.0 t\n1 Q0 ', ' 1 1.0 t', ':2: line: found '),
  ],
)
def test_rows_that_unpack_to_more_than_fits(
  tmp_path, monkeypatch, suffix, start, end, message
):
  """32 MB of one letter, where a million are allowed."""
  for module in (compressed_lines, file_shapes, json_rows):
    monkeypatch.setattr(module, 'MAX_ROW', 1_000_000)
  monkeypatch.setattr(json_rows, 'max_document', lambda: 1_000_000)
  content = f'{start}{"x" * 32_000_000}{end}'.encode()
  content = BOMBS.get(suffix, bytes)(content)
  path = write(tmp_path / f'a{suffix}', content)
  del content

  def consume():
    with pytest.raises(RecordError, match=message):
      formats.read_all([path])

  # xz takes 8 MB for itself.
  assert peak(consume) < 16e6


def test_after_a_line_that_is_too_long(tmp_path, monkeypatch):
  for module in (compressed_lines, file_shapes, json_rows):
    monkeypatch.setattr(module, 'MAX_ROW', 1000)
  other = ROW.replace('"1"', '"2"')
  path = write(tmp_path / 'a.jsonl', f'{ROW}\n{"x" * 5000}\n{other}')
  report = checks.BadRecords('skip')
  found = formats.read_all([path], report=report)
  assert [r.id for r in found] == ['1', '2']
  assert report.messages == [
    f'{path}:2: line: found more than 1,000 bytes, expected at most as many'
  ]


def test_many_blank_lines(tmp_path):
  path = write(tmp_path / 'a.jsonl', ROW + '\n' * 100_000 + ROW)
  with pytest.raises(RecordError, match='found 1,001 blank lines, expected'):
    formats.read_all([path], report=checks.BadRecords('skip'))


def test_rows_of_parquet_that_unpack_to_more_than_fits(tmp_path, monkeypatch):
  import pyarrow.parquet as pq

  monkeypatch.setattr(table_rows, 'MAX_ROW', 1_000_000)
  rows = [{'id': str(i), 'text': 'x' * 4_000_000} for i in range(4)]
  path = str(tmp_path / 'a.parquet')
  table = pa.Table.from_pylist(rows)
  pq.write_table(table, path, use_dictionary=False, compression='gzip')
  with pytest.raises(RecordError, match=r'found rows of 4,\d+,\d+ bytes each'):
    list(corpus.read_corpus([path], checks.BadRecords('skip')))


@pytest.mark.parametrize('kind', ['a directory', 'a pipe', 'a device'])
def test_what_is_no_file_is_refused(tmp_path, kind):
  path = tmp_path / 'x'
  if kind == 'a directory':
    path.mkdir()
  elif kind == 'a pipe':
    os.mkfifo(path)
  else:
    path.symlink_to('/dev/zero')
  for read in (
    lambda: formats.read_all([str(path)]),
    lambda: list(corpus.read_corpus([str(path)], checks.BadRecords())),
    lambda: sources.fingerprint(str(path)),
  ):
    with pytest.raises(RecordError) as error:
      read()
    assert str(error.value) == (
      f'{path}: cannot be read: it is {kind}, expected a file, since data are '
      'read more than once'
    )


def test_a_mark_of_byte_order_within_a_file(tmp_path):
  """Files of Windows that were put together."""
  other = ROW.replace('"1"', '"2"')
  path = write(tmp_path / 'a.jsonl', f'\ufeff{ROW}\n\ufeff{other}\n')
  assert [r.id for r in formats.read_all([path])] == ['1', '2']


def test_lone_surrogates_and_bytes_are_told_apart(tmp_path):
  """Of arrays and documents, which are decoded with surrogateescape."""
  row = ROW.replace('a?', r'a\udce9?')
  report = checks.BadRecords()
  for name, content in (('a.json', f'[{row}]'), ('a.jsonl', row)):
    path = write(tmp_path / name, content)
    assert formats.read_all([path], report=report)[0].question == 'a ?'
  path = write(tmp_path / 'b.json', f'[{ROW}]'.encode().replace(b'a?', b'\xe9'))
  with pytest.raises(RecordError, match='question: found byte 0xe9 at posit'):
    formats.read_all([path])
