"""Tests of vtokens.data.files."""

import json
import tracemalloc

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from vtokens.data import checks, corpus, files, formats
from vtokens.data.files import Shape, json_rows
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
  monkeypatch.setattr(json_rows, '_CHUNK', chunk)
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
