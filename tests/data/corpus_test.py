"""Tests of vtokens.data.corpus."""

import bz2
import csv
import gzip
import io
import json

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from vtokens.data import checks, corpus
from vtokens.data.records import Passage, RecordError


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def lines(*rows):
  return ''.join(f'{json.dumps(row)}\n' for row in rows)


def read(*paths, **kwargs):
  report = checks.BadRecords(**kwargs)
  return list(corpus.read_corpus(paths, report)), report


ONE, TWO = Passage('1', 'One', 'Text one.'), Passage('2', '', 'Text two.')


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    (
      'c.jsonl',
      lines(
        {'id': '1', 'title': 'One', 'text': 'Text one.'},
        {'id': 2, 'text': 'Text two.'},
      ),
    ),
    # FlashRAG.
    (
      'wiki18_100w.jsonl',
      lines(
        {'id': '1', 'contents': 'One\nText one.'},
        {'id': '2', 'contents': 'Text two.'},
      ),
    ),
    # BEIR, Tevatron.
    (
      'c.json',
      json.dumps(
        [
          {'_id': '1', 'title': 'One', 'text': 'Text one.', 'metadata': {}},
          {'docid': '2', 'title': '', 'text': 'Text two.'},
        ],
        indent=1,
      ),
    ),
    # DPR.
    ('psgs_w100.tsv', 'id\ttext\ttitle\n1\t"Text one."\tOne\n2\tText two.\t\n'),
  ],
)
def test_formats(tmp_path, name, content):
  path = write(tmp_path / name, content)
  found, report = read(path)
  assert found == [ONE, TWO]
  assert report.num_good == 2
  packed = write(tmp_path / f'{name}.gz', gzip.compress(content.encode()))
  packed2 = write(tmp_path / f'{name}.bz2', bz2.compress(content.encode()))
  assert read(packed)[0] == read(packed2)[0] == [ONE, TWO]
  assert corpus.lookup([packed], {'2', '9'}, report) == {'2': TWO}


def test_parquet(tmp_path):
  import pyarrow.parquet as pq

  rows = [
    {'id': '1', 'title': 'One', 'text': 'Text one.'},
    {'id': '2', 'title': None, 'text': 'Text two.'},
  ]
  path = str(tmp_path / 'part-0')  # Its content says what it is.
  pq.write_table(pa.Table.from_pylist(rows), path)
  assert read(path)[0] == [ONE, TWO]


def test_parquet_errors(tmp_path):
  import pyarrow.parquet as pq

  good = [b'Text %d.' % i for i in range(700)]
  good[500] = b'caf\xe9 '
  ids = pa.array([str(i) for i in range(700)])
  table = pa.table({'id': ids, 'text': pa.array(good).view(pa.utf8())})
  path = str(tmp_path / 'c.parquet')
  pq.write_table(table, path)
  with pytest.raises(
    RecordError, match=r'parquet: row 501: row: found .*UTF-8'
  ):
    read(path)
  found, report = read(path, on_bad_record='skip')
  assert [p.id for p in found] == [str(i) for i in range(700) if i != 500]
  assert report.counts == {'invalid_utf8': 1}
  content = (tmp_path / 'c.parquet').read_bytes()
  cut = write(tmp_path / 'cut.parquet', content[:-50])
  with pytest.raises(RecordError, match=r'cut\.parquet: cannot be read to its'):
    read(cut, on_bad_record='skip')


def test_psgs_quoting_and_errors(tmp_path):
  content = (
    'id\ttext\ttitle\n'
    '1\t"Aaron ("" or ""; Hebrew) is\ta prophet,\nand a priest."\tAaron\n'
    '2\tno title\n'
    '\ttext\ttitle\n'
    '4\tcaf\xe9\tx\n'
  ).encode('latin-1')
  path = write(tmp_path / 'psgs_w100.tsv', content)
  found, report = read(path, on_bad_record='skip')
  assert found == [
    Passage(
      '1', 'Aaron', 'Aaron (" or "; Hebrew) is\ta prophet,\nand a priest.'
    )
  ]
  assert report.messages == [
    f'{path}:4: row: found 2 fields, expected 3: id, text, title',
    f'{path}:5: id or _id or docid: missing, found only text, title, expected '
    'this key too',
    f'{path}:6: text: found byte 0xe9 at position 4, expected UTF-8',
  ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path):
  rows = ''.join(f'{i}\tText {i} {"x" * 90}.\tT\n' for i in range(3000))
  path = write(
    tmp_path / 'psgs.tsv', 'id\ttext\ttitle\nx\t"Never closed\tT\n' + rows
  )
  with pytest.raises(RecordError, match=r'tsv:2: row: found bad quoting'):
    read(path)
  found, report = read(path, on_bad_record='skip')
  assert found[-1].id == '2999'
  assert len(report.skipped) <= 2


def test_kilt_pages_become_paragraphs(tmp_path):
  page = {
    '_id': '7',
    'wikipedia_id': 7,
    'wikipedia_title': 'Big Ben',
    'text': ['Big Ben\n', 'A clock.\n', 'Section::::Name.\n', ' ', 'A name.\n'],
    'anchors': [],
  }
  path = write(tmp_path / 'kilt.json', lines(page))
  passages = [
    Passage('7:1', 'Big Ben', 'A clock.'),
    Passage('7:4', 'Big Ben', 'A name.'),
  ]
  found, report = read(path)
  assert found == passages
  assert report.num_good == 2
  assert corpus.lookup([path], {'7:4', '7:2', '8:1'}, report) == {
    '7:4': passages[1]
  }


@pytest.mark.parametrize(
  ('row', 'kind', 'message'),
  [
    (
      {'text': 'x'},
      'missing_key',
      'id or _id or docid: missing, found only te',
    ),
    ({'id': 'x'}, 'missing_key', 'text: missing, found only id'),
    (
      {'id': 'x', 'docid': 'y', 'text': 'x'},
      'malformed',
      'id and docid: found',
    ),
    ({'id': '1', 'text': 'x'}, 'duplicate_id', 'id: found 1, which an earlier'),
    ({'id': 'x', 'text': 'é' * 60}, 'too_long', 'text: found a text of 120 by'),
    ([], 'wrong_type', 'record: found an array'),
  ],
)
def test_bad_passages(tmp_path, row, kind, message):
  good = [{'id': i, 'text': 'Text.'} for i in (1, 2)]
  path = write(tmp_path / 'c.jsonl', lines(good[0], row, good[1]))
  with pytest.raises(RecordError) as error:
    read(path, max_text_bytes=100)
  assert str(error.value).startswith(f'{path}:2: {message}')
  found, report = read(path, on_bad_record='skip', max_text_bytes=100)
  assert [passage.id for passage in found] == ['1', '2']
  assert report.counts == {kind: 1}


def test_control_characters_are_replaced_and_counted(tmp_path):
  rows = [
    # Broken UTF-8, of which some bytes were read as Latin-1.
    {'id': '0', 'contents': 'The artist\xe2\x80\x99s mural.'},
    {'id': 'a\x92', 'title': 'N\0', 'text': 'x\x81y\x85 \ud83d.'},
    {'id': '2', 'text': 'one\u2028two\ufeff'},
  ]
  found, report = read(write(tmp_path / 'c.jsonl', lines(*rows)))
  assert found == [
    Passage('0', '', 'The artist\xe2\u20ac\u2122s mural.'),
    Passage('a\u2019', 'N ', 'x y\u2026  .'),
    Passage('2', '', 'one\u2028two\ufeff'),
  ]
  assert report.notes == {
    'rows with control characters, which were replaced': 2
  }


NONE = 'documents without title and text left out of the corpus'


@pytest.mark.parametrize('absent', ['', ' \t', '\x00', None])
@pytest.mark.parametrize('key', ['text', 'contents'])
def test_documents_without_a_text(tmp_path, absent, key):
  rows = [
    {'_id': 'd1', 'title': 'Murals of the town', 'text': absent},
    {'_id': 'd2', 'title': absent, 'text': 'Town 2.'},
    {'_id': 'd3', 'title': absent, 'text': absent},
  ]
  if key == 'contents':
    rows[0] = {'_id': 'd1', 'contents': f'Murals of the town\n{absent or ""}'}
    rows[2] = {'_id': 'd3', 'contents': f'{absent or ""}\n'}
  path = write(tmp_path / 'c.jsonl', lines(*rows))
  found, report = read(path)
  # The title is all there is to find, and to show.
  title = Passage('d1', '', 'Murals of the town')
  assert [p.id for p in found] == ['d1', 'd2']
  assert found[0] == title
  assert found[1].text == 'Town 2.'
  assert report.notes[NONE] == 1
  assert report.num_good == 2
  report = checks.BadRecords()
  named = corpus.lookup([path], {'d1', 'd3'}, report)
  assert named['d1'] == title
  assert named['d3'].text.strip() == ''


def test_a_document_has_a_text_key(tmp_path):
  """A corpus whose texts are under another key is not empty."""
  path = write(tmp_path / 'c.jsonl', lines({'id': '1', 'body': 'Text.'}))
  with pytest.raises(RecordError, match=r':1: text: missing, found only id, b'):
    read(path)


def test_files_that_are_no_corpus(tmp_path):
  path = write(tmp_path / 'c.json', json.dumps({'data': []}))
  with pytest.raises(
    RecordError, match=r'found a JSON object, expected a corpu'
  ):
    read(path)
  with pytest.raises(RecordError, match=r'empty: found no passage, expected'):
    read(write(tmp_path / 'empty', ''))
  with pytest.raises(RecordError, match=r'nowhere: cannot be read'):
    read(str(tmp_path / 'nowhere'))
  with pytest.raises(TypeError, match='expected a list'):
    next(corpus.read_corpus(path, checks.BadRecords()))


@hypothesis.settings(deadline=None)
@hypothesis.given(
  st.lists(
    st.tuples(
      *[
        # What csv keeps apart from the end of a line and of a file.
        st.text(st.characters(exclude_categories=['Cs', 'Cc'])).filter(
          str.strip
        )
      ]
      * 2
    ),
    min_size=1,
  )
)
def test_what_csv_writes_is_read(tmp_path_factory, texts):
  content = io.StringIO()
  writer = csv.writer(content, delimiter='\t')
  writer.writerow(['id', 'text', 'title'])
  writer.writerows([i, *pair] for i, pair in enumerate(texts))
  path = tmp_path_factory.mktemp('csv') / 'psgs.tsv'
  found, _ = read(write(path, content.getvalue()))
  assert found == [
    Passage(str(i), title, text) for i, (text, title) in enumerate(texts)
  ]


def test_ids_are_found_again_after_many():
  seen = corpus.SeenIds(max_recent=10)
  names = [f'id {i}' for i in range(1000)]
  assert not any(seen.add(name) for name in names)
  assert all(seen.add(name) for name in names)
  assert not seen.add('another')
