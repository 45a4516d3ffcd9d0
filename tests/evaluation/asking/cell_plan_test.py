"""Which cells there are."""

import types

import numpy as np
import pytest

from vtokens.evaluation.asking import cell_plan
from vtokens.evaluation.asking.cells import Cell
from vtokens.evaluation.eval_config import Config
from vtokens.evaluation.trained_tokens import TrainedTokens


def cells_of(tables=('t',), datasets=('d',), **settings) -> list[Cell]:
  model = types.SimpleNamespace(
    name='m',
    tables={
      name: TrainedTokens(name, np.zeros((9, 2)), None) for name in tables
    },
  )
  groups = cell_plan.groups(Config(**settings), model, datasets)
  for group in groups:
    for cell in group.variants:
      assert cell.dataset == group.dataset
      assert cell.num_passages == group.num_passages
      assert cell.retriever == group.retriever
  cells = [cell for group in groups for cell in group.variants]
  assert len(set(cells)) == len(cells)
  return cells


def points(cells, condition):
  return {
    (c.num_active, c.num_passages, c.retriever)
    for c in cells
    if c.condition == condition
  }


def test_each_axis_by_itself():
  cells = cells_of(
    conditions=('closed_book', 'prompt', 'tokens', 'tokens_closed_book'),
    num_active=(9, 1, 3),
    num_passages=(3, 0, 5),
    retrievers=('e5', 'bm25'),
  )
  assert points(cells, 'closed_book') == {(0, 0, '')}
  assert points(cells, 'prompt') == {
    (0, 3, 'e5'),
    (0, 0, ''),
    (0, 5, 'e5'),
    (0, 3, 'bm25'),
  }
  assert points(cells, 'tokens') == {
    (9, 3, 'e5'),
    (1, 3, 'e5'),
    (3, 3, 'e5'),
    (9, 0, ''),
    (9, 5, 'e5'),
    (9, 3, 'bm25'),
  }
  assert points(cells, 'tokens_closed_book') == {(k, 0, '') for k in (9, 1, 3)}


def test_every_combination():
  cells = cells_of(
    conditions=('tokens',),
    num_active=(9, 1),
    num_passages=(3, 0),
    retrievers=('e5', 'bm25'),
    product=True,
  )
  assert points(cells, 'tokens') == {
    (k, m, r) for k in (9, 1) for m, r in ((3, 'e5'), (3, 'bm25'), (0, ''))
  }


def test_all_tokens_of_each_table_unless_said():
  cells = cells_of(tables=('a', 'b'), conditions=('tokens', 'concat'))
  assert [(c.condition, c.table, c.num_active) for c in cells] == [
    ('tokens', 'a', 9),
    ('tokens', 'b', 9),
    ('concat', '', 0),
  ]


def test_what_shows_the_same_passages_is_one_group():
  model = types.SimpleNamespace(
    name='m', tables={'t': TrainedTokens('t', np.zeros((9, 2)), None)}
  )
  cfg = Config(
    conditions=('closed_book', 'prompt', 'tokens', 'untouched'),
    num_active=(9, 1),
    num_passages=(2, 0),
  )
  groups = cell_plan.groups(cfg, model, ['d', 'e'])
  assert [(g.dataset, g.num_passages, len(g.variants)) for g in groups] == [
    ('d', 0, 3),
    ('d', 2, 3),
    ('e', 0, 3),
    ('e', 2, 3),
  ]
  for group in groups:
    names = [variant.name for variant in group.variants.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('conditions', [('untouched',)])
def test_untouched_has_no_cells(conditions):
  assert cells_of(conditions=conditions) == []
