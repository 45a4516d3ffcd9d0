"""Bases in each quantised format: loaded, trained on, asked, exported."""

import itertools
import json
import shutil

import deployed_models
import device_programs
import jax
import numpy as np
import pytest
import quantised_models
import safetensors.torch
import tiny_models
import tiny_run
import torch
import trained_runs
import wrapped_models

from vtokens import ask, config, export, train
from vtokens.devices import partitioning
from vtokens.exports import torch_consumer
from vtokens.host import stopping
from vtokens.models import frozen_base, supported
from vtokens.models.files import weights
from vtokens.planning import known_models

# No answer has an id that no token of the tokenizer has.
QUIET = tuple(range(259, 320))
# compressed-tensors is in quantised_base_test.py.
OTHERS = [name for name in deployed_models.CASES if name != 'compressed']


def _sampled(names, first):
  """All, of which the default run has one."""
  return [
    name if name == first else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in names
  ]


def _decoder(path, **fields):
  settings = config.Base(path=str(path), **{'dtype': 'float32', **fields})
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  return frozen_base.load_base(settings, mesh).decoder()


@pytest.mark.parametrize('name', _sampled(OTHERS, 'mxfp4'))
def test_logits_are_those_of_transformers(tmp_path, name):
  deployed_models.save(tmp_path / 'base', deployed_models.CASES[name])
  model = torch_consumer.load_model(str(tmp_path / 'base'))
  ids = np.arange(40)[None] % 256
  expected = torch_consumer.logits(model, ids[0].tolist())
  found = quantised_models.logits(_decoder(tmp_path / 'base'), ids)
  np.testing.assert_allclose(found[0], expected, atol=2e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', OTHERS)
def test_exported_with_the_base(tmp_path, name):
  """Embedding and head get rows; all other tensors are as they were."""
  base, out = tmp_path / 'base', tmp_path / 'hf'
  deployed_models.save(base, deployed_models.CASES[name], quiet=QUIET)
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.quick(tmp_path / 'run'), 'hf', str(out))
  assert json.loads((out / 'gate.json').read_text())['passed']
  before = safetensors.torch.load_file(base / 'model.safetensors')
  after = safetensors.torch.load_file(out / 'model.safetensors')
  assert before.keys() == after.keys()
  for tensor in before.keys() - {'model.embed_tokens.weight', 'lm_head.weight'}:
    assert torch.equal(before[tensor], after[tensor])


@pytest.mark.slow
@pytest.mark.parametrize('name', _sampled(deployed_models.CASES, 'fp8'))
def test_trained_and_asked_and_the_table_exported(tmp_path, name):
  place = tiny_run.make_place(tmp_path)
  shutil.rmtree(tmp_path / 'base1')
  deployed_models.save(
    tmp_path / 'base1', deployed_models.CASES[name], quiet=QUIET
  )
  cfg = place.load(
    tmp_path / 'run',
    optim={'warmup_steps': 0},
    train={'num_steps': 1, 'validate_every': 1, 'checkpoint_every': 1},
    eval={'conditions': ()},
  )
  summary = train.train(cfg, stopping.StopRequest())
  opened = frozen_base.open_base(cfg.base)
  assert summary['base_fingerprint'] == opened.fingerprint
  replies = ask.ask(str(tmp_path / 'run'), 'Is it 3?', ['Fact 3 is b.'])
  assert len(replies) > 1
  for form in ('vtokens', 'peft', 'spring-pt'):
    out = tmp_path / form
    export.export(trained_runs.quick(tmp_path / 'run'), form, str(out))
    assert json.loads((out / 'gate.json').read_text())['passed']
    assert not (out / 'model.safetensors').exists()


# Compares what eight devices hold with what one holds.
_LOAD = """
import sys
import jax, numpy as np
from vtokens import config
from vtokens.devices import partitioning
from vtokens.models import frozen_base
from vtokens.models.files import weights

def load(directory, quantize, mesh):
  settings = config.Base(
    path=directory, dtype='bfloat16', quantize=quantize)
  return weights.iter_arrays(frozen_base.load_base(settings, mesh).decoder())

one = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
eight = partitioning.make_mesh((2, 2, 2))
for directory in sys.argv[1:]:
  # int8 takes long to compile.
  for quantize in ('none', 'int8')[: 1 + (directory == sys.argv[1])]:
    whole = dict(load(directory, quantize, one))
    for path, array in load(directory, quantize, eight):
      expected = np.asarray(whole.pop(path))
      assert len(array.sharding.device_set) == 8
      for shard in array.addressable_shards:
        assert np.array_equal(shard.data, expected[shard.index]), (
          directory, quantize, path)
    assert not whole
"""


@pytest.mark.exhaustive
def test_eight_devices_hold_what_one_holds(tmp_path):
  """models/files/hf_directory_test.py does so with FP8."""
  for name, case in deployed_models.CASES.items():
    deployed_models.save(tmp_path / name, case)
  places = [str(tmp_path / name) for name in deployed_models.CASES]
  device_programs.run(_LOAD, *places)


@pytest.mark.parametrize('quantize', ['none', 'int8'])
@pytest.mark.parametrize('name', _sampled(deployed_models.CASES, 'awq'))
def test_quantised_again_as_the_dequantised_model(tmp_path, name, quantize):
  """`base.quantize` starts from the values that are read."""
  base, plain = tmp_path / 'base', tmp_path / 'plain'
  deployed_models.save(base, deployed_models.CASES[name])
  torch_consumer.load_model(str(base)).save_pretrained(plain)
  tiny_models.save_tokenizer(plain)
  fields = {'dtype': 'bfloat16', 'quantize': quantize}
  expected = dict(weights.iter_arrays(_decoder(plain, **fields)))
  for path, array in weights.iter_arrays(_decoder(base, **fields)):
    found = np.asarray(array)
    assert found.tobytes() == np.asarray(expected.pop(path)).tobytes(), path
  assert not expected


@pytest.mark.parametrize('name', _sampled(deployed_models.CASES, 'gptq'))
def test_what_is_told(tmp_path, name):
  case = deployed_models.CASES[name]
  deployed_models.save(tmp_path / 'base', case)
  lines, loads = supported.describe(str(tmp_path / 'base'))
  assert loads
  number = {'mxfp4': 4, 'experts': 32, 'latent': 28}.get(name, 14)
  assert f'; {number} of ' in '\n'.join(lines)
  # Plans need no weights.
  (tmp_path / 'base' / 'model.safetensors').unlink()
  architecture = known_models.read_architecture(str(tmp_path / 'base'))
  assert architecture.num_layers == 2


def test_a_tied_head_is_in_the_list_of_torchao(tmp_path):
  """torchao reads no tensor that the metadata does not list."""
  base, out = tmp_path / 'base', tmp_path / 'out'
  case = deployed_models.CASES['torchao']
  deployed_models.save(base, case, quiet=QUIET, tie_word_embeddings=True)
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.quick(tmp_path / 'run'), 'hf', str(out))
  with safetensors.safe_open(out / 'model.safetensors', 'pt') as file:
    names, metadata = set(file.keys()), file.metadata()
  listed = set(json.loads(metadata['tensor_names']))
  assert 'lm_head.weight' in names
  assert {name for name in names if name.endswith('.weight')} <= listed
  assert metadata['lm_head.weight'] == '{"_type": "Tensor"}'


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ('model_type', 'name'),
  itertools.product(
    ('gemma3', 'qwen2_5_vl', 'mistral3'), ('fp8', 'compressed')
  ),
)
def test_a_multimodal_model(tmp_path, model_type, name):
  """Its other parts are quantised as well, and stay as they are."""
  base = tmp_path / 'base'
  wrapped_models.save(base, model_type, QUIET)
  case = deployed_models.CASES[name]
  # Other matrices are too narrow for groups.
  ends = tuple(f'.{name}_proj.weight' for name in 'qkvo')
  quantised_models.convert_files(base, case.convert, case.config, ends)
  trained_runs.write_run(tmp_path / 'run', base)
  for form in ('vtokens', 'hf'):
    out = tmp_path / form
    export.export(trained_runs.quick(tmp_path / 'run'), form, str(out))
    assert json.loads((out / 'gate.json').read_text())['passed']
  before = safetensors.torch.load_file(base / 'model.safetensors')
  after = safetensors.torch.load_file(out / 'model.safetensors')
  for tensor in before:
    if not tensor.endswith(('embed_tokens.weight', 'lm_head.weight')):
      assert torch.equal(before[tensor], after[tensor]), tensor
