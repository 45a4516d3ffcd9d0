"""Files and tables of scores."""

import dataclasses
import json

import pytest

from vtokens.data.records import GOLD, Passage, Record
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.cells import Answer

FORM = AnswerTexts('unknown', ' {answer}')
CITING = AnswerTexts('unknown', ' {answer} [{source}]')
RECORDS = [
  Record(f'r{i}', 'd', 'what?', ('yes', 'no'), passages={}) for i in range(2)
]


def test_predictions_file(tmp_path):
  path = tmp_path / 'sub' / 'p.jsonl'
  answers = [Answer('Yes!', 2, 'end'), Answer('maybe', 1, 'length')]
  run_scores.write_predictions(path, RECORDS, answers, FORM)
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
  assert run_scores.scores_of(RECORDS, answers, FORM).em == 50.0


def test_questions_without_an_answer_are_scored_apart(tmp_path):
  records = [*RECORDS, Record('n', 'd', 'why?', (), passages={})]
  answers = [
    Answer('yes', 1, 'end', confidence=-0.1),
    Answer('Unknown.', 1, 'end', confidence=-0.2),
    Answer('unknown', 1, 'end', confidence=-0.6),
  ]
  scores = run_scores.all_scores(records, answers, FORM, '')
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
  assert 'refusals' not in run_scores.all_scores(RECORDS, answers[:2], FORM, '')
  path = tmp_path / 'p.jsonl'
  run_scores.write_predictions(path, records, answers, FORM)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['em'] for row in rows] == [1.0, 0.0, None]
  assert [row['refused'] for row in rows] == [False, True, True]


def test_citations_are_scored_apart(tmp_path):
  listed = tuple(Passage(i, '', f'{i} {t}') for i, t in ('aa', 'bb', 'cc'))
  record = Record(
    'r', 'd', 'what?', ('bb b', 'b b'), {'bm25': listed, GOLD: listed[2:]}
  )
  none = dataclasses.replace(record, id='n', answers=())
  shown = {'confidence': -1.0, 'shown': (2, 0, 1)}
  asked = [record] * 5 + [none, record]
  answers = [
    Answer('b b [1]', 1, 'end', **shown),  # Gold.
    Answer('B b. [3]', 1, 'end', **shown),  # It contains the answer.
    Answer('b b [2]', 1, 'end', **shown),
    Answer('b b [4]', 1, 'end', **shown),  # There is none.
    Answer('b b', 1, 'end', **shown),
    Answer('unknown [1]', 1, 'end', **shown),
    # No passage with the answer was shown.
    Answer('b b [1]', 1, 'end', confidence=-1.0, shown=(0,)),
  ]
  scores = run_scores.all_scores(asked, answers, CITING, 'bm25')
  assert (scores['em'], scores['n']) == (100.0, 6)
  assert scores['refusals']['f1'] == 100.0
  assert scores['citations'] == {
    'precision': pytest.approx(100 * 2 / 6),
    'recall': pytest.approx(100 * 2 / 5),
    'f1': pytest.approx(200 * 2 / (6 + 5)),
    'cited': 6,
    'citable': 5,
  }
  path = tmp_path / 'p.jsonl'
  run_scores.write_predictions(path, asked, answers, CITING)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows[1]['prediction'] == 'B b.'
  assert [row['cited'] for row in rows] == [1, 3, 2, 4, None, 1, 1]
  bare = [dataclasses.replace(answer, shown=()) for answer in answers]
  assert 'citations' not in run_scores.all_scores(asked, bare, CITING, 'bm25')
