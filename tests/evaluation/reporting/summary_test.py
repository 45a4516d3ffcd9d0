"""Tests of vtokens.evaluation.reporting.summary."""

import dataclasses
import json

import numpy as np
import pytest
import report_data
from report_data import cell

from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.reporting import summary


def _summarize(results, **settings):
  reference = settings.pop('reference', 'prompt')
  defaults = {'resamples': 400, 'permutations': 400, 'seed': 0}
  resampling = summary.Resampling(**(defaults | settings))
  return summary.summarize(results, resampling, reference).as_json()


def _find(entries, condition, **where):
  found = [
    entry
    for entry in entries
    if entry['condition'] == condition
    and all(entry[key] == value for key, value in where.items())
  ]
  assert len(found) == 1
  return found[0]


def _pairs(found, dataset):
  return [
    (c['a']['condition'], c['b']['condition'])
    for c in found['comparisons']
    if c['dataset'] == dataset
  ]


def test_scores_of_cells_are_those_computed_by_hand():
  found = _summarize(report_data.small())
  prompt = _find(found['cells'], 'prompt', dataset='nq')
  # One of four is right; the others have an F1 of 0.5.
  assert prompt['n'] == 4
  assert prompt['metrics']['em']['mean'] == 25
  assert prompt['metrics']['f1']['mean'] == 62.5
  assert prompt['metrics']['contains']['mean'] == 100
  assert prompt['mean_tokens'] == (1 + 4 + 4 + 4) / 4
  assert prompt['stop'] == {'end': 25, 'newline': 0, 'length': 75}
  assert prompt['num_passages'] == 3
  assert prompt['retriever'] == 'bm25'


def test_averages_give_datasets_equal_weight():
  found = _summarize(report_data.small())
  prompt = _find(found['averages'], 'prompt')
  assert prompt['metrics']['em']['mean'] == (25 + 50) / 2  # Not 100 * 2 / 6.
  assert prompt['mean_tokens'] == (13 / 4 + 5 / 2) / 2
  assert prompt['stop'] == {'end': 37.5, 'newline': 0, 'length': 62.5}
  assert prompt['n'] == 6
  assert 'dataset' not in prompt


def test_intervals_are_those_of_the_distribution():
  found = _summarize(report_data.small())
  # Two questions, one right: resampled means are 0, 50, 50, 100.
  squad = _find(found['cells'], 'tokens', dataset='squad')
  assert squad['metrics']['em']['interval'] == [0, 100]
  # Nothing to resample: all are wrong.
  nq = _find(found['cells'], 'closed_book', dataset='nq')
  assert nq['metrics']['em']['interval'] == [0, 0]
  assert nq['metrics']['f1']['interval'] == [50, 50]
  # Half of 0 and half of what two questions of squad do.
  both = _find(found['averages'], 'closed_book')
  assert both['metrics']['em']['interval'] == [0, 50]


def test_nothing_is_rounded_and_all_is_json():
  records = {'nq': [report_data.record('nq', i) for i in range(3)]}
  results = report_data.build(records, [(cell('nq', 'prompt'), [1, 0, 0])])
  found = _summarize(results)
  assert found['cells'][0]['metrics']['em']['mean'] == pytest.approx(
    100 / 3, rel=1e-15
  )
  assert json.loads(json.dumps(found)) == found


def test_differences_and_p_values():
  found = _summarize(report_data.small(), permutations=20_000)
  by_dataset = {
    c['dataset']: c
    for c in found['comparisons']
    if (c['a']['condition'], c['b']['condition']) == ('tokens', 'prompt')
  }
  assert list(by_dataset) == ['', 'nq', 'squad']
  nq, squad = (by_dataset[name]['metrics']['em'] for name in ('nq', 'squad'))
  both = by_dataset['']['metrics']['em']
  assert (nq['difference'], squad['difference']) == (50, 0)
  assert both['difference'] == 25
  # Differences 0, 1, 1, 0: two of the four signs are as extreme.
  assert nq['p_value'] == pytest.approx(0.5, abs=0.02)
  # Differences -1 and 1, which any swap leaves no less extreme.
  assert squad['p_value'] == 1
  # Weighted 1/8 each in nq and 1/4 in squad; |sum| >= 1/4 in 12 of 16 ways.
  assert both['p_value'] == pytest.approx(0.75, abs=0.02)
  assert nq['interval'] == [0, 100]
  assert by_dataset['']['n'] == 6
  f1 = by_dataset['nq']['metrics']['f1']
  assert f1['difference'] == 25


def test_each_pair_is_compared_once():
  found = _summarize(report_data.small())
  assert _pairs(found, '') == [
    ('closed_book', 'prompt'),
    ('tokens', 'prompt'),
    ('tokens', 'closed_book'),
  ]
  assert _pairs(found, 'nq') == _pairs(found, '')
  found = _summarize(report_data.small(), reference='closed_book')
  assert _pairs(found, 'nq') == [
    ('prompt', 'closed_book'),
    ('tokens', 'closed_book'),
    ('tokens', 'prompt'),
  ]
  # One that was not asked.
  found = _summarize(report_data.small(), reference='concat')
  assert _pairs(found, 'nq') == [
    ('tokens', 'closed_book'),
    ('tokens', 'prompt'),
  ]


def test_two_tables_are_compared_with_each_other_once():
  records = {'nq': [report_data.record('nq', i) for i in range(2)]}
  spec = [
    (cell('nq', 'tokens', table='a', k=3), [1, 0]),
    (cell('nq', 'tokens', table='b', k=7), [1, 1]),
    (cell('nq', 'tokens', table='b', k=3), [0, 0]),  # Not a main one.
  ]
  results = report_data.build(records, spec, num_active={'a': 3, 'b': 7})
  found = _summarize(results)
  assert [
    (c['a']['table'], c['a']['num_active'], c['b']['table'], c['dataset'])
    for c in found['comparisons']
  ] == [('a', 3, 'b', ''), ('a', 3, 'b', 'nq')]


def test_each_model_is_compared_with_its_own_reference():
  records = {'nq': [report_data.record('nq', i) for i in range(2)]}
  spec = [
    (cell('nq', condition, model=model), [1, 0])
    for model in ('base', 'lora')
    for condition in ('concat', 'prompt')
  ]
  found = _summarize(report_data.build(records, spec))
  assert [
    (c['a']['model'], c['a']['condition'], c['b']['model'], c['b']['condition'])
    for c in found['comparisons']
    if c['dataset']
  ] == [
    ('base', 'concat', 'base', 'prompt'),
    ('lora', 'concat', 'lora', 'prompt'),
  ]


def test_what_is_not_asked_of_all_datasets_has_no_average():
  results = report_data.small()
  cells = dict(results.cells)
  del cells[cell('squad', 'tokens')]
  found = _summarize(dataclasses.replace(results, cells=cells))
  assert [e['condition'] for e in found['averages']] == [
    'closed_book',
    'prompt',
  ]
  assert _find(found['cells'], 'tokens')['dataset'] == 'nq'
  assert ('tokens', 'prompt') in _pairs(found, 'nq')
  assert ('tokens', 'prompt') not in _pairs(found, '')
  assert ('tokens', 'prompt') not in _pairs(found, 'squad')
  assert ('closed_book', 'prompt') in _pairs(found, '')


def test_columns_are_in_order_and_know_whether_they_are_main():
  results = report_data.large(size=4)
  # Whatever order cells were finished in.
  cells = dict(reversed(results.cells.items()))
  found = _summarize(dataclasses.replace(results, cells=cells))
  conditions = [column['condition'] for column in found['columns']]
  assert conditions == sorted(conditions, key=list(CONDITIONS).index)
  tokens = [c for c in found['columns'] if c['condition'] == 'tokens']
  tables = [column['table'] for column in tokens]
  assert tables == sorted(tables, key=['ours', 'other'].index)
  mains = [
    (c['condition'], c['table'], c['num_active'], c['num_passages'])
    for c in found['columns']
    if c['main']
  ]
  assert mains == [
    ('closed_book', '', 0, 0),
    ('concat', '', 0, 3),
    ('prompt', '', 0, 3),
    ('chat_prompt', '', 0, 3),
    ('tokens', 'ours', 5, 3),
    ('tokens', 'other', 20, 3),
  ]
  assert {c['retriever'] for c in found['columns'] if c['main']} == {
    '',
    'bm25',
  }
  assert len(found['cells']) == len(results.cells)
  assert len(found['averages']) == len(found['columns'])


def test_a_metric_of_some_cells_only():
  results = report_data.small()
  cells = {}
  for key, result in results.cells.items():
    values = dict(result.values)
    if key.condition == 'tokens':
      values['char_f1'] = np.full(len(result.answers), 0.5)
    cells[key] = dataclasses.replace(result, values=values)
  found = _summarize(dataclasses.replace(results, cells=cells))
  tokens = _find(found['averages'], 'tokens')
  assert tokens['metrics']['char_f1'] == {'mean': 50, 'interval': [50, 50]}
  assert 'char_f1' not in _find(found['averages'], 'prompt')['metrics']


def test_the_seed_decides():
  results = report_data.large(size=20)
  first = _summarize(results)
  assert _summarize(results) == first
  assert _summarize(results, seed=1)['cells'] != first['cells']
