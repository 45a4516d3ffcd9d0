"""A part of a block, an MLP, that is added from outside of the package."""

import dataclasses
from unittest import mock

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
import quantised
import tiny_models
import torch
from outside_part import OutsideMLP, SquaredRelu

from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig, identity
from vtokens.models.families import registry
from vtokens.models.files import hf_directory, weights
from vtokens.planning import abstract_step, flops


@pytest.fixture(scope='module', autouse=True)
def _registered():
  """In this module alone: other tests run over all registered families."""
  with mock.patch.dict(registry.families()):
    registry.register(OutsideMLP)
    yield


@pytest.mark.parametrize('method', ['none', 'int8'])
def test_logits(method, tmp_path):
  """Its matrices are found by their metadata: loaded, sharded, quantised."""
  reference = tiny_models.save(
    tmp_path, model_type='outside_mlp', num_hidden_layers=2
  )
  config = hf_directory.read_config(tmp_path)
  decoder = weights.load_decoder(
    hf_directory.SafetensorsSource(tmp_path),
    config,
    np.dtype(np.float32),
    partitioning.make_mesh((-1, 1, 1)),
    method,
  )
  if method != 'none':
    quantised.quantise_model(reference, method)
    assert decoder.layers.mlp.down.values.dtype == jnp.int8
  ids = np.random.default_rng(0).integers(256, size=(2, 40)).astype(np.int32)
  positions = np.broadcast_to(np.arange(40, dtype=np.int32), ids.shape)

  @nnx.jit
  def run(decoder):
    return decoder.logits(decoder(decoder.embed(ids), positions)[0])

  with torch.no_grad():
    expected = reference(torch.from_numpy(ids).long()).logits.numpy()
  np.testing.assert_allclose(run(decoder), expected, rtol=0, atol=2e-4)


_PLAIN = DecoderConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=48,
)
_OTHER = dataclasses.replace(_PLAIN, mlp=SquaredRelu())


def test_arithmetic_and_bytes():
  """An MLP of two matrices instead of three."""
  fewer = 3 * 32 * 48
  assert flops.matrix_weights(_PLAIN) - flops.matrix_weights(_OTHER) == fewer
  dtype = jnp.dtype(jnp.bfloat16)
  assert (
    abstract_step.matrix_bytes(_PLAIN, dtype, 'none')
    - abstract_step.matrix_bytes(_OTHER, dtype, 'none')
    == 2 * fewer
  )


def test_identity():
  """The part and its settings tell bases apart; others stay what they are."""
  assert 'mlp' not in identity(_PLAIN).replace('mlp_dim', '')
  assert identity(_OTHER).endswith(', mlp=SquaredRelu(power=2))')
  cubed = dataclasses.replace(_PLAIN, mlp=SquaredRelu(3))
  assert identity(cubed) != identity(_OTHER)
  assert cubed != _OTHER
