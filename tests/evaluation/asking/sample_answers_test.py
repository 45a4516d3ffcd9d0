"""The question that a run shows with its answers at its end."""

import json

import pytest

from vtokens.evaluation.asking import sample_answers
from vtokens.host import errors


def _write(tmp_path, name, rows):
  folder = tmp_path / 'predictions'
  folder.mkdir(exist_ok=True)
  lines = [
    {'question': f'q{i}', 'answers': ['x', 'y'], 'prediction': said, 'em': em}
    for i, (said, em) in enumerate(rows)
  ]
  (folder / f'{name}.jsonl').write_text(
    ''.join(json.dumps(line) + '\n' for line in lines)
  )


def test_the_first_right_answer_beside_the_others(tmp_path):
  _write(tmp_path, 'tokens_k4', [('a', 0.0), ('x', 1.0), ('y', 1.0)])
  _write(tmp_path, 'closed_book', [('b', 0.0), ('c d', 0.0), ('e', 0.0)])
  _write(tmp_path, 'prompt', [('f', 0.0), ('', 0.0), ('e', 0.0)])
  # Of other questions.
  _write(tmp_path, 'concat', [('b', 0.0)])
  assert sample_answers.describe(str(tmp_path), 4).splitlines() == [
    'one of 3 test questions, the first of 2 that the virtual tokens answered '
    'right:',
    'q1',
    '  expected               x / y',
    '  without passages       c d',
    '  with an instruction    (empty)',
    '  with 4 virtual tokens  x',
  ]


def test_no_right_answer_and_a_question_without_any(tmp_path):
  _write(tmp_path, 'tokens_k1', [('a', None), ('b', 0.0)])
  first, *rest = sample_answers.describe(str(tmp_path), 1).splitlines()
  assert first == 'one of 2 test questions, none was answered right:'
  assert rest[0] == 'q0' and rest[-1].endswith('  a')


def test_without_predictions_and_with_damaged_ones(tmp_path):
  assert sample_answers.describe(str(tmp_path), 4) == ''
  _write(tmp_path, 'tokens_k4', [('a', 0.0)])
  file = tmp_path / 'predictions/tokens_k4.jsonl'
  file.write_text('{}\n')
  with pytest.raises(errors.UserError, match=r'tokens_k4\.jsonl:1.*delete it'):
    sample_answers.describe(str(tmp_path), 4)
