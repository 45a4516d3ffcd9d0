"""Tests of vtokens.evaluation.reporting.report."""

import dataclasses
import itertools
import json

import markdown_it
import pytest
import report_data
from report_data import cell

from vtokens.evaluation.asking.cells import Cell, file_names
from vtokens.evaluation.reporting import report, summary
from vtokens.host import errors
from vtokens.scoring import metrics


def _write(directory, results, **changes):
  context = report.ReportContext(
    settings={'batch_size': 8}, versions={'vtokens': '0.1.0'}, **changes
  )
  _, content = report.write_report(
    directory,
    results,
    context,
    summary.Resampling(resamples=200, permutations=99, seed=3),
    reference='prompt',
    page_questions=100,
  )
  return content


def _files(directory):
  return sorted(
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file()
  )


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  directory = tmp_path_factory.mktemp('report')
  results = report_data.large(size=5)
  return directory, results, _write(directory, results)


def test_every_file_that_is_told_and_no_other(large):
  directory, results, content = large
  assert _files(directory) == sorted([*content['files'], 'report.json'])
  names = [name.split('/')[0] for name in content['files']]
  assert names.count('predictions') == len(results.cells)
  assert names.count('plots') == 4
  assert {'report.md', 'report.html'} < set(names)


def test_json_is_what_is_returned(large):
  directory, _, content = large
  written = json.loads((directory / 'report.json').read_text())
  assert written == content
  assert written['settings'] == {'batch_size': 8}
  assert written['versions'] == {'vtokens': '0.1.0'}
  assert written['statistics']['seed'] == 3


def test_predictions_are_all_there_with_their_coordinates(large):
  directory, results, content = large
  scores = {}
  for path in (directory / 'predictions').iterdir():
    rows = _rows(path)
    (where,) = {
      Cell(**{f.name: row[f.name] for f in dataclasses.fields(Cell)})
      for row in rows
    }
    records = results.records[where.dataset]
    assert [row['id'] for row in rows] == [r.id for r in records]
    for row, record in zip(rows, records, strict=True):
      ranked = record.ranked(where.retriever) if where.retriever else ()
      assert row['passages'] == [p.id for p in ranked[: where.num_passages]]
      assert row['ranks'] == [1, 2, 3][: where.num_passages]
      assert row['question'] == record.question
      assert tuple(row['answers']) == record.answers
      assert row['em'] == metrics.exact_match(row['prediction'], row['answers'])
      assert row['stop'] == ('end' if row['em'] else 'length')
      assert row['num_tokens'] == (1 if row['em'] else 4)
    scores[where] = 100 * sum(row['f1'] for row in rows) / len(rows)
  assert scores.keys() == results.cells.keys()
  for entry in content['cells']:
    where = Cell(**{f.name: entry[f.name] for f in dataclasses.fields(Cell)})
    assert entry['metrics']['f1']['mean'] == pytest.approx(scores[where])


def test_predictions_name_the_passages_that_were_there(tmp_path):
  results = report_data.small()
  key = report_data.cell('nq', 'tokens')
  first, *others = results.cells[key].answers
  first = dataclasses.replace(first, shown=(2, 0), passages_dropped=1)
  cell = dataclasses.replace(results.cells[key], answers=[first, *others])
  cells = {**results.cells, key: cell}
  _write(tmp_path, dataclasses.replace(results, cells=cells))
  rows = _rows(tmp_path / f'predictions/{file_names(list(cells))[key]}.jsonl')
  assert rows[0]['passages'] == ['bm25-0-2', 'bm25-0-0']
  assert rows[0]['ranks'] == [3, 1]
  assert (rows[0]['passages_dropped'], rows[0]['passages_cut']) == (1, 0)
  assert rows[1]['ranks'] == [1, 2, 3]


def test_markdown_has_tables_and_pictures(large):
  directory, _, _ = large
  text = (directory / 'report.md').read_text()
  for line in (
    '## With retrieval (model lm, m = 3, retriever bm25)',
    '## Without retrieval (model lm, table ours, k = 5, m = 0)',
    '## Paired tests',
    '## All cells',
    '- seed: 3',
    '- vtokens: 0.1.0',
  ):
    assert line in text.splitlines()
  for name in ('k', 'passages', 'retrievers', 'datasets'):
    assert f'](plots/{name}.png)' in text
  # Every row of a table is as wide as its header, so that it reads as text.
  lines = text.splitlines()
  for above, below in itertools.pairwise(lines):
    if above.startswith('|') and below.startswith('|'):
      assert len(above) == len(below)
  assert 'Cost' not in text
  assert 'General ability' not in text


@pytest.mark.parametrize(
  ('earlier', 'problem'),
  [
    ('', 'not JSON'),
    ('[]', r'expected an object, got \[\]'),
    ('{"files": [1]}', r'files\[0\]: expected a text, got 1'),
    ('{}', 'files is missing'),
    ('[' * 100_000, 'not JSON: nested too deeply'),
  ],
)
def test_an_earlier_report_that_is_damaged(tmp_path, earlier, problem):
  (tmp_path / 'report.json').write_text(earlier)
  with pytest.raises(
    errors.UserError, match=f'report.json: {problem}.*; delete it to'
  ):
    report.read_earlier(tmp_path)
  results = report_data.build(
    {'nq': [report_data.record('nq', 0)]}, [(Cell('nq', 'b', 'prompt'), [1])]
  )
  with pytest.raises(errors.UserError, match=problem):
    _write(tmp_path, results)
  assert [p.name for p in tmp_path.iterdir()] == ['report.json']


@pytest.mark.parametrize(
  'name',
  [
    'a|b `c` *d* \\',
    '<script>alert(1)</script> &amp;',
    'a\n\n# b [c](http://d) ![e](f)',
    'a$b$ $x^$',
  ],
)
def test_names_in_a_report_are_text(tmp_path, name):
  """Of datasets and runs, as CommonMark reads the file."""
  records = {
    dataset: [report_data.record(dataset, i) for i in range(3)]
    for dataset in (name, 'nq')
  }
  cells = [
    (Cell(dataset, name, 'tokens', name, k, 3, name), [1, 0, 1])
    for dataset in records
    for k in (1, 5)
  ]
  records = {
    dataset: [
      dataclasses.replace(one, passages={name: one.passages['bm25']})
      for one in found
    ]
    for dataset, found in records.items()
  }
  results = report_data.build(
    records, cells, num_active={name: 5}, retriever=name
  )
  found = _write(tmp_path, results, cost={name: name, 'rows': [{name: name}]})
  assert set(found['datasets']) == {name, 'nq'}
  text = (tmp_path / 'report.md').read_text()
  read = markdown_it.MarkdownIt('commonmark').enable('table').parse(text)
  pieces = [piece for token in read for piece in token.children or ()]
  kinds = {piece.type for piece in pieces}
  assert kinds <= {'text', 'text_special', 'code_inline', 'image', 'softbreak'}
  assert not any(token.type.startswith('html') for token in read)
  images = [piece.attrs['src'] for piece in pieces if piece.type == 'image']
  assert images == [f'plots/{plot}.png' for plot in ('k', 'datasets')]
  headings = [
    ''.join(piece.content for piece in after.children)
    for token, after in itertools.pairwise(read)
    if token.type == 'heading_open'
  ]
  one_line = ' '.join(name.split())
  assert f'With retrieval (model {one_line}, table {one_line}, k = 5, ' in (
    '\n'.join(headings)
  )
  assert all(
    level.tag in ('h1', 'h2') for level in read if level.type == 'heading_open'
  )
  cells_read = [
    ''.join(piece.content for piece in after.children)
    for token, after in itertools.pairwise(read)
    if token.type == 'td_open'
  ]
  assert one_line in cells_read


def test_cost_and_general_ability_are_sections(tmp_path):
  cost = {'device': 'one CPU', 'rows': [{'condition': 'prompt', 'ms': 12.5}]}
  general = {'tasks': [{'task': 'boolq', 'accuracy': 82.97}]}
  content = _write(tmp_path, report_data.small(), cost=cost, general=general)
  assert content['cost'] == cost
  assert content['general'] == general
  text = (tmp_path / 'report.md').read_text()
  assert '| prompt    | 12.5 |' in text
  assert '| boolq |    82.97 |' in text
  assert 'one CPU' in (tmp_path / 'report.html').read_text()


def test_a_second_report_leaves_nothing_of_the_first(tmp_path):
  first = _write(tmp_path, report_data.large(size=3))
  own = tmp_path / 'plots' / 'mine.png'
  own.write_text('not of a report')
  second = _write(tmp_path, report_data.small())
  assert len(second['files']) < len(first['files'])
  assert _files(tmp_path) == sorted(
    [*second['files'], 'report.json', 'plots/mine.png']
  )


def test_only_what_a_report_can_have_written_is_removed(tmp_path):
  directory = tmp_path / 'report'
  _write(directory, report_data.small())
  path = directory / 'report.json'
  content = json.loads(path.read_text())
  content['files'] += ['../keep.png', 'plots/../../keep.png', 'keep.jsonl']
  path.write_text(json.dumps(content))
  for place in (tmp_path / 'keep.png', directory / 'keep.jsonl'):
    place.write_text('kept')
  _write(directory, report_data.small())
  assert (tmp_path / 'keep.png').exists()
  assert (directory / 'keep.jsonl').exists()


def test_names_of_files_are_safe_and_differ():
  cells = [
    Cell('nq', 'lm', 'prompt', num_passages=3, retriever='bm25'),
    Cell('nq', 'lm', 'tokens', 'ours', 5, 0),
    Cell('nq', '/models/a b', 'prompt', num_passages=3),
    Cell('nq', '/models/a_b', 'prompt', num_passages=3),
    Cell('..', 'lm', 'prompt'),
    Cell('NQ', 'lm', 'prompt', num_passages=3, retriever='bm25'),
    Cell('nq', 'x' * 300, 'prompt'),
    Cell('nq', 'x' * 299 + 'y', 'prompt'),
    Cell('frågor', 'lm', 'prompt'),
    # Two coordinates that read like one another.
    Cell('a.b', 'c', 'prompt'),
    Cell('a', 'b.c', 'prompt'),
  ]
  names = file_names(cells)
  assert list(names) == cells
  assert len({name.lower() for name in names.values()}) == len(cells)
  for name in names.values():
    assert len(name) <= 120
    assert name.isascii()
    assert not set(name) & set('/\\ :*?')
    assert not name.startswith('.')
  assert names[cells[1]] == 'nq.lm.tokens.ours.k5.m0'


def test_console_of_averages():
  found = summary.summarize(
    report_data.small(), summary.Resampling(5000, 99, 0)
  )
  lines = [line.split() for line in report.format_console(found).splitlines()]
  assert ' '.join(lines[0]) == (
    'average of 2 datasets EM 95 % interval F1 tokens ended n'
  )
  assert [' '.join(line) for line in lines[1:4]] == [
    'closed_book 25.0 [ 0.0, 50.0] 62.5 3.2 25 % 6',
    'prompt 37.5 [ 0.0, 75.0] 68.8 2.9 38 % 6',
    'tokens 62.5 [ 25.0, 100.0] 81.2 2.1 62 % 6',
  ]
  aligned = report.format_console(found).splitlines()[:4]
  assert len(set(map(len, aligned))) == 1
  (line,) = [
    line
    for line in report.format_console(found).splitlines()
    if line.startswith('tokens - prompt')
  ]
  assert line.startswith('tokens - prompt: EM +25.0 [')
  assert 'p = 0.' in line


def test_console_of_a_condition_that_was_not_asked_everywhere():
  results = report_data.small()
  cells = dict(results.cells)
  del cells[cell('squad', 'tokens')]
  found = summary.summarize(
    dataclasses.replace(results, cells=cells), summary.Resampling(20, 9, 0)
  )
  text = report.format_console(found)
  assert '\ntokens, nq ' in text
  assert 'tokens, squad' not in text
  assert 'tokens - prompt' not in text


def test_console_of_one_dataset():
  records = {'nq': [report_data.record('nq', i) for i in range(2)]}
  results = report_data.build(records, [(cell('nq', 'prompt'), [1, 0])])
  found = summary.summarize(results, summary.Resampling(20, 9, 0))
  header, row = report.format_console(found).splitlines()
  assert header.startswith('nq ')
  assert row.startswith('prompt   50.0  [')
