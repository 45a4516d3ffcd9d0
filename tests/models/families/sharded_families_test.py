"""Every family over a mesh of eight devices, against PyTorch."""

import json

import decoder_cases
import device_programs
import numpy as np
import pytest

from vtokens.models.families import registry

# Rows for four devices along data and fsdp; passages and suffix.
_ROWS, _PREFIX, _SUFFIX = 4, 24, 16

# Runs the model of each directory, passages first and then the suffix with
# their cache, and prints the largest difference from the expected logits.
_RUN = """
import dataclasses, json, pathlib, sys
import flax.nnx as nnx
import jax, jax.numpy as jnp, numpy as np
from vtokens.devices import partitioning
from vtokens.models.files import hf_directory, weights

mesh = partitioning.make_mesh((2, 2, 2))
found = {}
for directory in map(pathlib.Path, sys.argv[2:]):
  ids = np.load(directory / 'ids.npy')
  config = hf_directory.read_config(directory)
  model = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    # The length decides between factors of longrope.
    dataclasses.replace(config, context_length=ids.shape[1]),
    jnp.dtype('float32'),
    mesh,
  )
  place = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
  cut = int(sys.argv[1])

  @nnx.jit
  def run(model, ids, place):
    first, last = ids[:, :cut], ids[:, cut:]
    cache = model.encode(model.embed(first), place[:, :cut], ids=first)
    hidden, _ = model(model.embed(last), place[:, cut:], [cache], ids=last)
    return model.logits(hidden)

  logits = run(model, *partitioning.shard_batch((ids, place), mesh, len(ids)))
  for name, x in weights.iter_arrays(model):
    # Of B and C, which heads of Mamba 2 share, only matrices are large.
    small = ('.conv_b', '.conv_c', '.in_b_bias', '.in_c_bias')
    # From a few streams to as many.
    small += ('.altup.prediction', '.altup.correction')
    # A convolution has a few numbers for each channel.
    small += ('.kernel',)
    if x.ndim > 2 and not name.endswith(small):
      assert x.addressable_shards[0].data.size < x.size, name
  expected = np.load(directory / 'logits.npy')
  found[directory.name] = float(np.abs(np.asarray(logits) - expected).max())
print(json.dumps(found))
"""

# One case of each family.
_CASES = {
  model_type: name
  for name, (model_type, _) in reversed(decoder_cases.CASES.items())
}
_SAMPLE = ('gemma3_text', 'cohere2', 'nemotron_h')
_OTHERS = [model_type for model_type in _CASES if model_type not in _SAMPLE]


def test_every_family_has_a_case():
  assert set(_CASES) == set(registry.families())


@pytest.mark.parametrize(
  'model_types',
  [
    pytest.param(_SAMPLE, id='sample'),
    pytest.param(_OTHERS, id='others', marks=pytest.mark.exhaustive),
  ],
)
def test_logits_over_a_mesh(model_types, tmp_path):
  ids = np.random.default_rng(1).integers(256, size=(_ROWS, _PREFIX + _SUFFIX))
  for model_type in model_types:
    name = _CASES[model_type]
    directory = tmp_path / model_type
    changes = {}
    if decoder_cases.CASES[name][1].get('num_key_value_heads') == 1:
      # The two devices along tensor divide heads of keys.
      changes = {'num_key_value_heads': 2}
    reference = decoder_cases.save(directory, name, **changes)
    logits = decoder_cases.torch_logits(reference, ids)
    np.save(directory / 'ids.npy', ids.astype(np.int32))
    np.save(directory / 'logits.npy', np.stack(logits)[:, _PREFIX:])
  directories = [str(tmp_path / model_type) for model_type in model_types]
  found = json.loads(device_programs.run(_RUN, str(_PREFIX), *directories))
  assert set(found) == set(model_types)
  assert not {name: d for name, d in found.items() if not d < 2e-4}
