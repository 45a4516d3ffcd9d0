"""Tests of vtokens.evaluation.reporting.report_plots."""

import copy
import dataclasses
import io
import warnings

import matplotlib.image
import numpy as np
import pytest
import report_data
from report_data import cell

from vtokens.evaluation.reporting import report_plots, summary


def _summarize(results):
  return summary.summarize(results, summary.Resampling(200, 9, 0))


def _draw(found):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    pictures = report_plots.draw(found)
  images = {}
  for name, (text, png) in pictures.items():
    assert text
    assert png.startswith(b'\x89PNG')
    images[name] = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  return images


@pytest.fixture(scope='module')
def large():
  found = _summarize(report_data.large(size=10))
  return found, _draw(found)


def test_all_pictures_of_all_axes(large):
  _, images = large
  assert set(images) == {'k', 'passages', 'retrievers', 'datasets'}
  for image in images.values():
    assert image.shape[1] == 1500
    assert image.shape[0] >= 500
    # Something in each quarter of the width.
    for part in np.array_split(image.min(axis=2) < 0.9, 4, axis=1):
      assert part.mean() > 0.01


def test_only_pictures_for_which_there_are_cells():
  assert set(_draw(_summarize(report_data.small()))) == {'datasets'}
  records = {'nq': [report_data.record('nq', i) for i in range(2)]}
  spec = [(cell('nq', 'tokens', k=k), [1, 0]) for k in (1, 5)]
  found = _summarize(report_data.build(records, spec))
  assert set(_draw(found)) == {'k'}


def test_one_picture_for_each_dataset_that_alone_varies():
  records = {
    name: [report_data.record(name, i) for i in range(2)]
    for name in ('nq', 'squad', 'webq')
  }
  spec = [
    (cell(name, 'tokens', k=k), [1, 0])
    for name, ks in (('nq', (1, 5)), ('squad', (2, 5)), ('webq', (5,)))
    for k in ks
  ]
  found = _summarize(report_data.build(records, spec))
  pictures = report_plots.draw(found)
  assert set(pictures) == {'k_1', 'k_2', 'datasets'}
  assert [pictures[name][0].split(', ')[1] for name in ('k_1', 'k_2')] == [
    'nq',
    'squad',
  ]


@pytest.mark.parametrize(
  'name, condition, where',
  [
    ('k', 'prompt', {'num_passages': 3, 'retriever': 'bm25'}),
    ('k', 'tokens', {'num_active': 2, 'table': 'other'}),
    ('passages', 'tokens', {'num_passages': 0}),
    ('retrievers', 'prompt', {'retriever': 'e5-base'}),
    ('datasets', 'closed_book', {}),
  ],
)
@pytest.mark.parametrize('metric, half', [('em', 0), ('f1', 1)])
def test_each_value_is_drawn(large, name, condition, where, metric, half):
  found, before = large
  found = copy.deepcopy(found)
  (entry,) = [
    one
    for one in found.averages
    if one.cell.condition == condition
    and all(getattr(one.cell, axis) == at for axis, at in where.items())
  ]
  value = entry.metrics[metric]
  value.mean += 7
  value.interval = tuple(end + 7 for end in value.interval)
  after = _draw(found)
  axis = 0 if name == 'datasets' else 1
  changed = [
    not np.array_equal(a, b)
    for a, b in zip(
      np.array_split(before[name], 2, axis=axis),
      np.array_split(after[name], 2, axis=axis),
      strict=True,
    )
  ]
  assert changed[half]


def test_a_missing_bar_does_not_look_like_a_score_of_zero():
  records = {
    name: [report_data.record(name, i) for i in range(2)]
    for name in ('nq', 'squad')
  }
  spec = [
    (cell('nq', 'prompt'), [1, 1]),
    (cell('nq', 'tokens'), [1, 1]),
    (cell('squad', 'prompt'), [1, 1]),
    (cell('squad', 'tokens'), [0, 0]),
  ]
  results = report_data.build(records, spec)
  zero = _summarize(results)
  missing = dataclasses.replace(
    zero,
    cells=tuple(
      one
      for one in zero.cells
      if (one.cell.dataset, one.cell.condition) != ('squad', 'tokens')
    ),
  )
  a, b = (_draw(found)['datasets'] for found in (zero, missing))
  top = slice(0, a.shape[0] // 2)
  assert not np.array_equal(a[top], b[top])


def test_a_column_without_average():
  results = report_data.small()
  cells = dict(results.cells)
  del cells[cell('squad', 'tokens')]
  found = _summarize(dataclasses.replace(results, cells=cells))
  assert set(_draw(found)) == {'datasets'}
