"""Tests of vtokens.serving.table_file."""

import json

import numpy as np
import pytest
import safetensors.numpy

from vtokens.host import errors
from vtokens.serving import table_file


def test_equal_tables_have_equal_bytes(tmp_path):
  """The library alone orders the metadata by chance."""
  metadata = {name: [name] for name in 'qwertyuiop'}
  table = np.arange(6, dtype=np.float32).reshape(2, 3)
  found = set()
  for i in range(8):
    path = tmp_path / f'{i}.safetensors'
    table_file.save(path, table, metadata)
    found.add(path.read_bytes())
  assert len(found) == 1
  with safetensors.safe_open(path, framework='numpy') as file:
    assert file.metadata() == {k: json.dumps(v) for k, v in metadata.items()}
    np.testing.assert_array_equal(file.get_tensor('virtual_tokens'), table)
  # The tensors are aligned for readers that map the file.
  size = int.from_bytes(path.read_bytes()[:8], 'little')
  assert size % 8 == 0
  assert list(json.loads(path.read_bytes()[8 : 8 + size])['__metadata__']) == (
    sorted(metadata)
  )


def test_metadata_that_is_no_json(tmp_path):
  path = tmp_path / 'a.safetensors'
  for value, problem in (('x', 'not JSON'), ('[' * 99999, 'nested too deeply')):
    safetensors.numpy.save_file(
      {'virtual_tokens': np.zeros((1, 2), np.float32)}, path, {'base': value}
    )
    with pytest.raises(
      errors.UserError, match=f'{path}: base in its metadata: .*{problem}'
    ):
      table_file.load(path)
