"""EM and F1 of real predictions against an independent implementation.

torchmetrics has the official SQuAD script's definitions, in torch. It differs
from the script of version 1.1 in one case: where neither prediction nor answer
has a word after normalisation, its F1 is 1, as in version 2.0.
"""

import gzip
import json
import pathlib

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from vtokens.evaluation import answer_rules
from vtokens.scoring import metrics

PREDICTIONS = pathlib.Path(__file__).with_name('squad_predictions.jsonl.gz')


@pytest.fixture(scope='module')
def rows() -> list[dict]:
  with gzip.open(PREDICTIONS, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def reference(prediction: str, answers: list[str]) -> tuple[float, float]:
  """Percent, f32."""
  values = squad(
    {'id': '', 'prediction_text': prediction},
    {'id': '', 'answers': {'text': answers, 'answer_start': [0]}},
  )
  return float(values['exact_match']), float(values['f1'])


def test_each_of_500_predictions_agrees(rows):
  assert len({row['id'] for row in rows}) == 500
  predictions = [row['prediction'] for row in rows]
  answers = [row['answers'] for row in rows]
  expected = np.array(
    [reference(p, a) for p, a in zip(predictions, answers, strict=True)]
  )
  found = answer_rules.score_questions('text', predictions, answers)
  np.testing.assert_array_equal(100 * found['em'], expected[:, 0])
  np.testing.assert_allclose(100 * found['f1'], expected[:, 1], atol=2e-5)
  # The case in which the reference is not that of version 1.1 does not occur.
  normal = [
    [metrics.normalize_answer(text) for text in (p, *a)]
    for p, a in zip(predictions, answers, strict=True)
  ]
  assert not any(said == '' and '' in golds for said, *golds in normal)
  # Nor is the agreement one about zeros.
  f1 = found['f1']
  assert found['em'].sum() >= 20
  assert ((f1 > 0) & (f1 < 1)).sum() >= 100
  assert (f1 == 0).sum() >= 200
  assert sum(not p for p in predictions) >= 20
  assert sum('\n' in p for p in predictions) >= 20
  assert sum(len(a) > 1 for a in answers) >= 200


def test_means_agree(rows):
  expected = squad(
    [{'id': r['id'], 'prediction_text': r['prediction']} for r in rows],
    [
      {'id': r['id'], 'answers': {'text': r['answers'], 'answer_start': [0]}}
      for r in rows
    ],
  )
  found = metrics.score(
    [row['prediction'] for row in rows], [row['answers'] for row in rows]
  )
  assert found.em == pytest.approx(float(expected['exact_match']), abs=1e-4)
  assert found.f1 == pytest.approx(float(expected['f1']), abs=1e-4)


def test_nothing_to_share_is_version_1():
  """An empty bag shares no word: 0 by the script of 1.1, 1 by that of 2.0."""
  assert metrics.token_f1('the', ['a']) == 0
  assert reference('the', ['a'])[1] == 100
  assert reference('x', ['a'])[1] == reference('the', ['x'])[1] == 0


def test_containment_is_between_em_and_substring(rows):
  values = answer_rules.score_questions(
    'text',
    [row['prediction'] for row in rows],
    [row['answers'] for row in rows],
    char_f1=True,
  )
  substring = np.array(
    [
      any(
        metrics.normalize_answer(answer)
        in metrics.normalize_answer(row['prediction'])
        for answer in row['answers']
      )
      for row in rows
    ]
  )
  assert (values['em'] <= values['contains']).all()
  assert (values['contains'] <= substring).all()
  assert values['em'].sum() < values['contains'].sum() < substring.sum()
  # Wrong answers share characters with right ones; see `metrics.char_f1`.
  wrong = values['f1'] == 0
  said = np.array([bool(row['prediction']) for row in rows])
  assert 0.2 < values['char_f1'][wrong & said].mean() < 0.5
