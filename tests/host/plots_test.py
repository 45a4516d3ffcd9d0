"""Tests of vtokens.host.plots."""

import warnings

import matplotlib.image
import numpy as np
import pytest

from vtokens.host import plots

_LOSS = [{'step': i, 'loss': 5.0 / i} for i in range(1, 31)]
_VALIDATION = [
  {'step': i, 'validation_loss': 6.0 / i, 'validation_em': 1.0 * i}
  for i in (10, 20, 30)
]
_SUMMARY = {
  'conditions': {
    'closed_book': {'em': 1.0, 'f1': 2.0, 'n': 10},
    'concat': {'em': 5.0, 'f1': 9.0, 'n': 10},
    'tokens': {'em': 40.0, 'f1': 50.0, 'n': 10},
  },
  # JSON sorts no keys: '20' must not come before '5'.
  'k': {str(k): {'em': em, 'f1': em} for k, em in ((20, 30), (1, 9), (5, 20))},
}


def _plot(path, metrics, summary):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    plots.plot_run(path, metrics, summary)
  assert path.read_bytes().startswith(b'\x89PNG')
  return matplotlib.image.imread(path)[..., :3]


def _ink(image):
  """Share of the pixels of each half that are not white."""
  dark = image.min(axis=2) < 0.9
  middle = image.shape[1] // 2
  return dark[:, :middle].mean(), dark[:, middle:].mean()


def test_both_halves_show_something(tmp_path):
  image = _plot(tmp_path / 'a.png', _LOSS + _VALIDATION, _SUMMARY)
  assert image.shape[0] >= 300
  assert image.shape[1] >= 800
  empty = _plot(tmp_path / 'b.png', [], {'conditions': {}, 'k': {}})
  for full, axes_only in zip(_ink(image), _ink(empty), strict=True):
    assert full > 1.3 * axes_only > 0


@pytest.mark.parametrize(
  'change, half',
  [
    ({'metrics': _LOSS}, 0),  # No validation set.
    ({'metrics': _VALIDATION}, 0),  # Steps are logged less often.
    ({'summary': {**_SUMMARY, 'k': {'1': {'em': 9.0, 'f1': 9.0}}}}, 1),
    ({'summary': {**_SUMMARY, 'conditions': {}}}, 1),
  ],
)
def test_each_part_is_drawn(tmp_path, change, half):
  full = {'metrics': _LOSS + _VALIDATION, 'summary': _SUMMARY}
  a = _plot(tmp_path / 'a.png', *full.values())
  b = _plot(tmp_path / 'b.png', *(full | change).values())
  middle = a.shape[1] // 2
  differs = [
    not np.array_equal(a[:, :middle], b[:, :middle]),
    not np.array_equal(a[:, middle:], b[:, middle:]),
  ]
  assert differs[half]
