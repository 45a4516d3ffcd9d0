"""Files and tables of scores."""

import json

from vtokens.data.records import Record
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.cells import Answer

RECORDS = [
  Record(f'r{i}', 'd', 'what?', ('yes', 'no'), passages={}) for i in range(2)
]


def test_predictions_file(tmp_path):
  path = tmp_path / 'sub' / 'p.jsonl'
  answers = [Answer('Yes!', 2, 'end'), Answer('maybe', 1, 'length')]
  run_scores.write_predictions(path, RECORDS, answers)
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
