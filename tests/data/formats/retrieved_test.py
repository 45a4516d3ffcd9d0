"""TREC runs and qrels with questions and a corpus."""

import json

import pytest

from vtokens.data import formats
from vtokens.data.records import Passage, RecordError

RUN = """\
q1 Q0 d2 1 14.5 bm25
q1 Q0 d1 2 -3e-2 bm25
q2 Q0 d1 2 1.0 bm25
q2 Q0 d3 1 2.0 bm25
q1\tQ0\td3\t1\t0.9\te5
"""
QRELS = 'q1 0 d1 1\nq1 0 d2 0\nq2 0 d3 2\n'


@pytest.fixture
def questions(tmp_path):
  rows = [
    {'id': f'q{i}', 'question': f'Question {i}?', 'answers': ['a']}
    for i in (1, 2, 3)
  ]
  return write(tmp_path / 'q.jsonl', *map(json.dumps, rows))


@pytest.fixture
def corpus(tmp_path):
  return write(
    tmp_path / 'c.tsv',
    'id\ttext\ttitle',
    *(f'd{i}\tText {i}.\tTitle {i}' for i in (1, 2, 3, 4)),
  )


def write(path, *lines):
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def passage(i, score=None):
  return Passage(f'd{i}', f'Title {i}', f'Text {i}.', score)


def test_run_and_qrels(tmp_path, questions, corpus):
  run, qrels = (
    write(tmp_path / 'run.txt', RUN),
    write(tmp_path / 'qrels', QRELS),
  )
  report = formats.BadRecords()
  found = formats.read_all(
    [run, questions, qrels], corpus=[corpus], report=report
  )
  assert [record.passages for record in found] == [
    {
      'bm25': (passage(2, 14.5), passage(1, -0.03)),
      'e5': (passage(3, 0.9),),
      'gold': (passage(1),),
    },
    # In the order of the ranks, not of the lines.
    {'bm25': (passage(3, 2.0), passage(1, 1.0)), 'gold': (passage(3),)},
    {},
  ]
  assert report.notes == {
    f'records for which nothing is in {run}': 1,
    f'records for which nothing is in {qrels}': 1,
    'records without passages': 1,
  }


def test_a_run_needs_a_corpus(tmp_path, questions):
  run = write(tmp_path / 'run.txt', RUN)
  with pytest.raises(RecordError) as error:
    formats.read_all([questions, run])
  assert str(error.value).startswith(
    f'{run}: found ids of passages, but no corpus was given'
  )


def test_a_run_of_other_questions_is_an_error(tmp_path, questions, corpus):
  run = write(tmp_path / 'run.txt', RUN.replace('q1', 'x').replace('q2', 'y'))
  with pytest.raises(RecordError, match=r'run\.txt: nothing in it is for any'):
    formats.read_all([questions, run], corpus=[corpus])


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('q2 Q0 d1 2 1.0', ':2: line: found q2 Q0 d1 2 1.0, expected the six colu'),
    (
      'q2 Q0 d1 1st 1.0 t',
      ':2: rank: found a string ("1st"), expected a whole',
    ),
    (
      'q2 Q0 d1 1 nan t',
      ':2: score: found a string ("nan"), expected a finite',
    ),
  ],
)
def test_bad_line_of_a_run(tmp_path, questions, corpus, line, message):
  run = write(tmp_path / 'run.txt', 'q1 Q0 d2 1 14.5 bm25', line)
  with pytest.raises(RecordError) as error:
    formats.read_all([questions, run], corpus=[corpus])
  assert str(error.value).startswith(f'{run}{message}')
  report = formats.BadRecords('skip')
  found = formats.read_all([questions, run], corpus=[corpus], report=report)
  assert found[0].passages == {'bm25': (passage(2, 14.5),)}
  assert report.counts.total() == 1


def test_bad_line_of_qrels(tmp_path, questions, corpus):
  qrels = write(tmp_path / 'qrels.txt', 'q1 0 d1 1', 'q1 0 d2 high')
  with pytest.raises(RecordError, match=r':2: line: .* four columns of TREC'):
    formats.read_all([questions, qrels], corpus=[corpus])


def test_two_runs_of_one_name_are_an_error(tmp_path, questions, corpus):
  runs = [write(tmp_path / name, RUN) for name in ('a.txt', 'b.txt')]
  with pytest.raises(
    RecordError, match=r'found those of (bm25|e5) here and in'
  ):
    formats.read_all([questions, *runs], corpus=[corpus])


def test_qrels_of_beir(tmp_path, questions, corpus):
  qrels = write(
    tmp_path / 'test.tsv',
    'query-id\tcorpus-id\tscore',
    'q1\td1\t1',
    'q1\td2\t0',
    'q2\td3\t2',
  )
  found = formats.read_all([questions, qrels], corpus=[corpus])
  assert [record.passages for record in found] == [
    {'gold': (passage(1),)},
    {'gold': (passage(3),)},
    {},
  ]
  # A line ends where the file says so, not at each line break of Unicode.
  qrels = write(
    tmp_path / 'odd.tsv', 'query-id\tcorpus-id\tscore', 'q1\td\u20281 a\t1'
  )
  odd = write(tmp_path / 'odd.jsonl', '{"id": "d\\u20281 a", "text": "A"}')
  first, *_ = formats.read_all([questions, qrels], corpus=[odd])
  assert [p.text for p in first.passages['gold']] == ['A']
  bad = write(tmp_path / 'bad.tsv', 'query-id\tcorpus-id\tscore', 'q1 d1 1')
  with pytest.raises(RecordError, match=r"bad\.tsv:2: line: .* BEIR's qrels"):
    formats.read_all([questions, bad], corpus=[corpus])


def test_a_tag_with_control_characters(tmp_path, questions, corpus):
  run = write(tmp_path / 'run.txt', 'q1 Q0 d2 1 14.5 b\x00m')
  (first, *_) = formats.read_all([questions, run], corpus=[corpus])
  assert first.passages == {'b m': (passage(2, 14.5),)}


def test_runs_and_ids_that_several_files_have(tmp_path, corpus):
  """A run names the file whose question it is for."""
  paths = []
  for name in ('nq', 'tqa'):
    (tmp_path / name).mkdir()
    row = {'id': 'q1', 'question': f'{name}?', 'answers': ['a']}
    paths.append(write(tmp_path / name / 'dev.jsonl', json.dumps(row)))
  run = write(tmp_path / 'run', 'tqa/q1 Q0 d2 1 1.0 bm25')
  found = formats.read_all([*paths, run], corpus=[corpus])
  assert [(r.id, r.passages) for r in found] == [
    ('nq/q1', {}),
    ('tqa/q1', {'bm25': (passage(2, 1.0),)}),
  ]
  run = write(tmp_path / 'run', 'q1 Q0 d2 1 1.0 bm25')
  with pytest.raises(RecordError, match=r'equal ids, .* read as nq/ID'):
    formats.read_all([*paths, run], corpus=[corpus])


def test_a_blank_document_is_left_out_of_a_run(tmp_path, questions):
  corpus = write(tmp_path / 'c.tsv', 'id\ttext\ttitle', 'd1\t\t', 'd2\tx\t')
  run = write(tmp_path / 'run', 'q1 Q0 d1 1 2.0 t', 'q1 Q0 d2 2 1.0 t')
  report = formats.BadRecords()
  found = formats.read_all([questions, run], corpus=[corpus], report=report)
  assert found[0].passages == {'t': (Passage('d2', '', 'x', 1.0),)}
  assert report.notes['blank passages left out'] == 1
