"""Tests of vtokens.data.batch."""

import subprocess
import sys

import numpy as np
import pytest

from vtokens.data import batch

_FIELDS = {
  name: np.zeros((2, 3), np.int32)
  for name, field in batch.Batch.__dataclass_fields__.items()
  if not field.metadata
}


@pytest.mark.parametrize(
  ('per_row', 'draws', 'absent'),
  [
    (1, 1, {'prefix_segments', 'suffix_segments', 'suffix_parents'}),
    (1, 2, {'prefix_segments', 'suffix_parents'}),
    (3, 1, {'suffix_parents'}),
    (3, 2, set()),
  ],
)
def test_segments_that_rows_need(per_row, draws, absent):
  made = batch.make(per_row=per_row, draws=draws, **_FIELDS)
  assert {name for name in _FIELDS if getattr(made, name) is None} == absent
  assert (made.num_prefixes, made.num_suffixes) == (per_row, per_row * draws)


def test_data_workers_import_neither_model_nor_optimiser():
  code = (
    'import sys, vtokens.data.training_set, vtokens.data.pipeline\n'
    "heavy = ('flax', 'optax', 'transformers', 'torch')\n"
    "own = ('vtokens.method', 'vtokens.models.decoder', 'vtokens.run')\n"
    'print([m for m in sys.modules if m in heavy or m.startswith(own)])'
  )
  output = subprocess.check_output([sys.executable, '-c', code], text=True)
  assert output == '[]\n'
