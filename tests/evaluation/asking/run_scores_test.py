"""Files and tables of scores."""

import json

import pytest

from vtokens.data.records import Record
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.cells import Answer

RECORDS = [
  Record(f'r{i}', 'd', 'what?', ('yes', 'no'), passages={}) for i in range(2)
]


def test_predictions_file(tmp_path):
  path = tmp_path / 'sub' / 'p.jsonl'
  answers = [Answer('Yes!', 2, 'end'), Answer('maybe', 1, 'length')]
  run_scores.write_predictions(path, RECORDS, answers, 'unknown')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['em'] for row in rows] == [1.0, 0.0]
  assert rows[0] == {
    'id': 'r0',
    'dataset': 'd',
    'question': 'what?',
    'prediction': 'Yes!',
    'answers': ['yes', 'no'],
    'em': 1.0,
    'f1': 1.0,
    'confidence': None,
  }
  assert run_scores.scores_of(RECORDS, answers).em == 50.0


def test_questions_without_an_answer_are_scored_apart(tmp_path):
  records = [*RECORDS, Record('n', 'd', 'why?', (), passages={})]
  answers = [
    Answer('yes', 1, 'end', confidence=-0.1),
    Answer('Unknown.', 1, 'end', confidence=-0.2),
    Answer('unknown', 1, 'end', confidence=-0.6),
  ]
  scores = run_scores.all_scores(records, answers, 'unknown')
  assert scores == {
    'em': 50.0,
    'f1': 50.0,
    'n': 2,
    'confidence': pytest.approx(-0.3),
    'risk_area': 0.0,
    'refusals': {
      'precision': 50.0,
      'recall': 100.0,
      'f1': pytest.approx(200 / 3),
      'refused': 2,
      'unanswerable': 1,
      'n': 3,
    },
  }
  assert 'refusals' not in run_scores.all_scores(RECORDS, answers[:2], 'no')
  path = tmp_path / 'p.jsonl'
  run_scores.write_predictions(path, records, answers, 'unknown')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['em'] for row in rows] == [1.0, 0.0, None]
  assert [row['refused'] for row in rows] == [False, True, True]
