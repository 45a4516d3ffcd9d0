"""Which axes apply to a cell, and its name."""

import dataclasses

import pytest

from vtokens.evaluation.asking.cells import AXES, Cell, MainValues

CELLS = {
  'tokens': Cell('d', 'm', 'tokens', 'run', 5, 3, 'bm25'),
  'prompt': Cell('d', 'm', 'prompt', '', 0, 3, 'bm25'),
  'prompt without passages': Cell('d', 'm', 'prompt'),
  'closed_book': Cell('d', 'm', 'closed_book'),
  'tokens_closed_book': Cell('d', 'm', 'tokens_closed_book', 'run', 5),
}


@pytest.mark.parametrize(
  'name, axes, file',
  [
    ('tokens', {*AXES}, 'd.m.tokens.run.k5.m3.bm25'),
    ('prompt', {*AXES} - {'table', 'num_active'}, 'd.m.prompt.m3.bm25'),
    (
      'prompt without passages',
      {'model', 'condition', 'num_passages'},
      'd.m.prompt.m0',
    ),
    ('closed_book', {'model', 'condition'}, 'd.m.closed_book.m0'),
    (
      'tokens_closed_book',
      {'model', 'condition', 'table', 'num_active'},
      'd.m.tokens_closed_book.run.k5.m0',
    ),
  ],
)
def test_axes_that_apply(name, axes, file):
  cell = CELLS[name]
  assert {axis for axis in AXES if cell.applies(axis)} == axes
  assert cell.file_name() == file
  everything = dataclasses.replace(
    cell,
    num_active=cell.num_active or 5,
    num_passages=cell.num_passages or 3 * (cell.condition != 'prompt'),
    retriever='bm25',
  )
  assert everything.only_what_applies() == cell


def test_main_values():
  main = MainValues({'run': 5}, 3, 'bm25')
  assert [name for name, cell in CELLS.items() if main.hold(cell)] == [
    'tokens',
    'prompt',
    'closed_book',
    'tokens_closed_book',
  ]
  assert main.hold(CELLS['prompt without passages'], without='num_passages')
  other = dataclasses.replace(CELLS['tokens'], num_active=2)
  assert not main.hold(other)
  assert main.hold(other, without='num_active')
  assert not main.hold(other, without='retriever')
