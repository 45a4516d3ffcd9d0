"""A family of models that is added from outside of the package."""

import json
import subprocess
import sys
from unittest import mock

import flax.nnx as nnx
import numpy as np
import pytest
import tiny_models
import torch
from outside_family import Outside

from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models.families import registry
from vtokens.models.files import hf_directory, saving, weights


@pytest.fixture(scope='module', autouse=True)
def _registered():
  """In this module alone: other tests run over all registered families."""
  with mock.patch.dict(registry.families()):
    registry.register(Outside)
    yield


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """transformers' model, and where it lies."""
  directory = tmp_path_factory.mktemp('outside')
  model = tiny_models.save(
    directory,
    model_type='outside',
    head_dim=24,
    attention_out_bias=True,
    num_hidden_layers=2,
  )
  return model, directory


def test_logits_and_files(saved, tmp_path):
  """The logits of transformers' model; written, the config comes back."""
  reference, directory = saved
  config = hf_directory.read_config(directory)
  decoder = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    config,
    np.dtype(np.float32),
    partitioning.make_mesh((-1, 1, 1)),
  )
  ids = np.random.default_rng(0).integers(256, size=(2, 40)).astype(np.int32)
  positions = np.broadcast_to(np.arange(40, dtype=np.int32), ids.shape)

  @nnx.jit
  def run(decoder):
    return decoder.logits(decoder(decoder.embed(ids), positions)[0])

  with torch.no_grad():
    expected = reference(torch.from_numpy(ids).long()).logits.numpy()
  np.testing.assert_allclose(run(decoder), expected, rtol=0, atol=2e-4)
  saving.save_decoder(decoder, tmp_path, {})
  assert hf_directory.read_config(tmp_path) == config


@pytest.mark.parametrize(
  ('field', 'value'), [('mlp_bias', True), ('residual_dropout', 0.5)]
)
def test_a_field_that_the_family_does_not_read_is_refused(saved, field, value):
  """So that one that its author has not thought of cannot change the model."""
  values = json.loads((saved[1] / 'config.json').read_text())
  registry.from_hf(values)
  with pytest.raises(errors.UserError, match=f'{field} is {value}, expected'):
    registry.from_hf({**values, field: value})


def test_a_family_of_an_installed_package(saved, tmp_path):
  """Found by its entry point, without anybody importing it."""
  info = tmp_path / 'more_models-1.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text('Name: more_models\nVersion: 1\n')
  (info / 'entry_points.txt').write_text(
    f'[{registry.ENTRY_POINTS}]\noutside = outside_family:Outside\n'
  )
  (tmp_path / 'read.py').write_text(
    f'import sys; sys.path[:0] = [{str(tmp_path)!r}, *{sys.path!r}]\n'
    'from vtokens.models.files import hf_directory\n'
    f'print(hf_directory.read_config({str(saved[1])!r}).model_type)\n'
  )
  found = subprocess.run(
    [sys.executable, tmp_path / 'read.py'],
    check=True,
    capture_output=True,
    text=True,
  )
  assert found.stdout == 'outside\n'
