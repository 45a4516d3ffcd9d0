"""Tests of the tables and columns of a report."""

import dataclasses

import pytest
import report_data
from report_data import cell

from vtokens.evaluation.reporting import columns, report_tables, summary


def _summarize(results):
  return summary.summarize(results, summary.Resampling(200, 99, 0))


def _sweep(spec, datasets=('nq', 'squad'), **main):
  """Results of cells of which one of two questions, or the other, is right."""
  records = {
    name: [
      report_data.record(name, i, retrievers=('bm25', 'e5')) for i in range(2)
    ]
    for name in datasets
  }
  return _summarize(report_data.build(records, spec, **main))


def test_main_tables_have_the_layout_of_the_paper():
  with_retrieval, without = report_tables.main_tables(
    _summarize(report_data.small())
  )
  assert with_retrieval.title == (
    'With retrieval (model lm, table ours, k = 5, m = 3, retriever bm25)'
  )
  assert report_tables.to_markdown(with_retrieval) == (
    '| EM/F1 |      prompt |      tokens |\n'
    '| ----- | ----------: | ----------: |\n'
    '| nq    | 25.00/62.50 | 75.00/87.50 |\n'
    '| squad | 50.00/75.00 | 50.00/75.00 |\n'
    '| Avg   | 37.50/68.75 | 62.50/81.25 |'
  )
  assert without.title == 'Without retrieval (model lm)'
  assert report_tables.to_markdown(without) == (
    '| EM/F1 | closed_book |\n'
    '| ----- | ----------: |\n'
    '| nq    |  0.00/50.00 |\n'
    '| squad | 50.00/75.00 |\n'
    '| Avg   | 25.00/62.50 |'
  )


def test_conditions_at_no_passages_are_without_retrieval():
  spec = [
    (cell(name, condition, m=m), [1, 0])
    for name in ('nq', 'squad')
    for condition, m in (('prompt', 3), ('prompt', 0), ('closed_book', 0))
  ]
  with_retrieval, without = report_tables.main_tables(_sweep(spec))
  assert with_retrieval.header == ('EM/F1', 'prompt')
  assert without.header == ('EM/F1', 'closed_book', 'prompt')


def test_what_is_missing_is_left_out():
  results = report_data.small()
  cells = dict(results.cells)
  del cells[cell('squad', 'tokens')]
  del cells[cell('squad', 'closed_book')]
  found = _summarize(dataclasses.replace(results, cells=cells))
  with_retrieval, without = report_tables.main_tables(found)
  assert with_retrieval.rows == (
    ('nq', '25.00/62.50', '75.00/87.50'),
    ('squad', '50.00/75.00', ''),
    ('Avg', '37.50/68.75', ''),
  )
  assert without.rows == (('nq', '0.00/50.00'),)


def test_a_single_dataset_needs_no_average():
  found = _sweep([(cell('nq', 'prompt'), [1, 0])], datasets=('nq',))
  (table,) = report_tables.main_tables(found)
  assert table.rows == (('nq', '50.00/75.00'),)
  assert {row[0] for row in report_tables.details_table(found).rows} == {'nq'}
  assert report_tables.comparisons_table(found) is None


def test_labels_name_what_differs():
  def label(*cells):
    return columns.labels(cells)

  prompt, tokens = cell('nq', 'prompt'), cell('nq', 'tokens')
  assert label(prompt, tokens) == ['prompt', 'tokens']
  assert label(prompt, tokens, cell('nq', 'tokens', k=9)) == [
    'prompt',
    'tokens (k = 5)',
    'tokens (k = 9)',
  ]
  assert label(tokens, cell('nq', 'tokens', table='b', k=9)) == [
    'tokens (ours, k = 5)',
    'tokens (b, k = 9)',
  ]
  # What cannot vary is not named.
  assert label(
    cell('nq', 'closed_book'), prompt, cell('nq', 'prompt', m=5)
  ) == [
    'closed_book',
    'prompt (m = 3)',
    'prompt (m = 5)',
  ]
  assert label(prompt, cell('nq', 'prompt', model='other')) == [
    'prompt (lm)',
    'prompt (other)',
  ]


def test_k_in_numerical_order_with_the_prompt_for_comparison():
  spec = [
    (cell(name, 'tokens', k=k), right)
    for name in ('nq', 'squad')
    for k, right in ((10, [1, 1]), (5, [1, 0]), (1, [0, 0]))
  ]
  spec += [(cell(name, 'prompt'), [1, 0]) for name in ('nq', 'squad')]
  (table,) = report_tables.axis_tables(_sweep(spec))
  assert table.title == (
    'Number of virtual tokens (k), Avg, model lm, table ours, m = 3, '
    'retriever bm25'
  )
  assert table.header == ('EM/F1', '1', '5', '10')
  assert table.rows == (
    ('tokens', '0.00/50.00', '50.00/75.00', '100.00/100.00'),
  )
  assert table.note == 'For comparison: prompt 50.00/75.00'


def test_what_varies_in_one_dataset_only_is_told_of_it():
  spec = [(cell('nq', 'tokens', k=k), [1, 0]) for k in (1, 5)]
  spec += [(cell('squad', 'tokens'), [1, 0])]
  (table,) = report_tables.axis_tables(_sweep(spec))
  assert table.title.startswith('Number of virtual tokens (k), nq, ')


def test_passages_from_none_on_are_one_series():
  spec = [
    (cell(name, condition, m=m), [1, 0])
    for name in ('nq', 'squad')
    for condition, ms in (('prompt', (3, 0, 1)), ('tokens', (3, 0)))
    for m in ms
  ]
  (table,) = report_tables.axis_tables(_sweep(spec))
  assert table.title == (
    'Number of passages (m), Avg, model lm, table ours, k = 5, retriever bm25'
  )
  assert table.header == ('EM/F1', '0', '1', '3')
  assert table.rows == (
    ('prompt', '50.00/75.00', '50.00/75.00', '50.00/75.00'),
    ('tokens', '50.00/75.00', '', '50.00/75.00'),
  )


def test_retrievers_have_average_and_population_variance():
  spec = [
    (cell('nq', 'prompt', by='bm25'), [1, 0]),
    (cell('nq', 'prompt', by='e5'), [1, 1]),
    (cell('nq', 'tokens', by='bm25'), [1, 1]),
    (cell('nq', 'tokens', by='e5'), [1, 1]),
    (cell('nq', 'concat', by='bm25'), [1, 1]),
  ]
  (table,) = report_tables.axis_tables(_sweep(spec, datasets=('nq',)))
  assert table.header == ('EM/F1', 'bm25', 'e5', 'average', 'variance')
  # EM 50 and 100: (25^2 + 25^2) / 2; F1 75 and 100: 2 * 12.5^2 / 2.
  assert table.rows == (
    ('prompt', '50.00/75.00', '100.00/100.00', '75.00/87.50', '625.00/156.25'),
    ('tokens', '100.00/100.00', '100.00/100.00', '100.00/100.00', '0.00/0.00'),
  )


# Table 4 of arXiv 2405.19670: BM25, BGE-base, E5-base, E5-large.
@pytest.mark.parametrize(
  'values, mean, variance',
  [
    ((21.23, 23.07, 24.38, 25.66), 23.58, 2.69),
    ((54.94, 56.12, 56.84, 57.70), 56.40, 1.02),
    ((30.94, 31.81, 33.34, 34.35), 32.61, 1.75),
    ((62.73, 63.46, 64.49, 65.00), 63.92, 0.78),
  ],
)
def test_the_variance_is_that_of_the_paper(values, mean, variance):
  found = report_tables.spread(values)
  # Half a unit of the last digit that is printed, and float error.
  assert found == pytest.approx((mean, variance), abs=0.00501)


def test_details_have_all_cells_with_intervals():
  found = _summarize(report_data.small())
  table = report_tables.details_table(found)
  assert table.header == (
    'dataset',
    'condition',
    'k',
    'm',
    'n',
    'EM',
    'F1',
    'containment',
    'tokens',
    'ended %',
  )
  assert len(table.rows) == 3 + 6
  assert table.rows[0][:2] == ('Avg', 'closed_book')
  assert (
    'squad',
    'tokens',
    '5',
    '3',
    '2',
    '50.00 [0.00, 100.00]',
    '75.00 [50.00, 100.00]',
    '100.00 [100.00, 100.00]',
    '2.5',
    '50.0',
  ) in table.rows


def test_paired_tests_start_with_the_average():
  table = report_tables.comparisons_table(_summarize(report_data.small()))
  assert table.header[:5] == ('dataset', 'A', 'B', 'EM, A - B', 'p')
  assert [row[0] for row in table.rows] == 3 * ['Avg'] + 3 * ['nq'] + 3 * [
    'squad'
  ]
  (row,) = [row for row in table.rows if row[:3] == ('nq', 'tokens', 'prompt')]
  assert row[3] == '+50.00 [+0.00, +100.00]'
  assert '99 permutations' in table.note


def test_p_values_are_never_0():
  assert report_tables.p_text(1 / 10_001) == '<0.0001'
  assert report_tables.p_text(0.0312) == '0.0312'


def test_markdown_of_awkward_text():
  table = report_tables.ReportTable(
    't', ('a|b', 'n'), (('x\ny', '1'), ('', '20'))
  )
  assert report_tables.to_markdown(table) == (
    '| a\\|b |   n |\n| ---- | --: |\n| x y  |   1 |\n|      |  20 |'
  )


def test_markdown_keeps_numbers_and_ordinary_names():
  rows = (
    ('entity_questions', '12.50 [1.00, 24.00]'),
    ('tokens (ours, k = 5)', '+0.50 [-1.00, 2.00]'),
    ('2wiki-multi.hop', '<0.0001'),
    ('', '42.97/51.20'),
  )
  text = report_tables.to_markdown(
    report_tables.ReportTable('t', ('a', 'n'), rows)
  )
  assert all(value in text for row in rows for value in row)
  assert '\\' not in text


def test_generic_tables_show_whatever_scalars_there_are():
  value = {
    'device': 'CPU',
    'same': True,
    'rows': [
      {'condition': 'prompt', 'ms': 31.256, 'each': [1, 2, 3]},
      {'condition': 'tokens', 'num_active': 50, 'ms': 12345.6},
    ],
    'untouched': {'weights': False},
    'tasks': [{'task': 'boolq', 'interval': [0.5, 0.25]}],
  }
  found = {
    t.title: (t.header, t.rows)
    for t in report_tables.generic_tables('C', value)
  }
  assert found == {
    'C': (('', 'value'), (('device', 'CPU'), ('same', 'yes'))),
    'C: rows': (
      ('condition', 'ms', 'num_active'),
      (('prompt', '31.26', ''), ('tokens', '12,346', '50')),
    ),
    'C: untouched': (('', 'value'), (('weights', 'no'),)),
    'C: tasks': (('task', 'interval'), (('boolq', '[0.5, 0.25]'),)),
  }
