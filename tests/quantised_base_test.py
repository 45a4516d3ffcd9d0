"""A base whose files are quantised by compressed-tensors."""

import json

import compressed_cases
import jax
import numpy as np
import pytest
import quantised_models
import safetensors.torch
import torch
import trained_runs
import transformers

from vtokens import config, export
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models import frozen_base, supported
from vtokens.models.files import fingerprints, hf_directory
from vtokens.planning import known_models

INT4 = compressed_cases.CASES['w4a16-zeros']
# No answer has an id that no token of the tokenizer has.
QUIET = tuple(range(259, 320))


def _save(directory, case=INT4, **overrides):
  directory.mkdir()
  return quantised_models.save(
    directory, compressed_cases.convert(case), case.config, **overrides
  )


def test_logits_are_those_of_the_dequantised_model(tmp_path):
  """The library's values in transformers, ours in the decoder."""
  packed = _save(tmp_path / 'base')
  settings = config.Base(path=str(tmp_path / 'base'), dtype='float32')
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  model = frozen_base.load_base(settings, mesh).decoder()
  values = json.loads((tmp_path / 'base' / 'config.json').read_text())
  del values['quantization_config']
  made = transformers.AutoConfig.for_model(**values)
  reference = transformers.LlamaForCausalLM(made).eval()
  stored = safetensors.torch.load_file(tmp_path / 'base' / 'model.safetensors')
  state = {n: t for n, t in stored.items() if '_proj.' not in n}
  state |= {n: compressed_cases.reference(INT4, p) for n, p in packed.items()}
  reference.load_state_dict(state)
  ids = np.arange(40)[None] % 256
  with torch.no_grad():
    expected = reference(torch.from_numpy(ids)).logits.numpy()
  found = quantised_models.logits(model, ids)
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_fingerprint_is_that_of_the_files(tmp_path):
  def fingerprint(name, case=INT4, **overrides):
    _save(tmp_path / name, case, **overrides)
    source = hf_directory.SafetensorsSource(tmp_path / name)
    architecture = hf_directory.read_config(tmp_path / name)
    return fingerprints.of_base(source, architecture)

  first = fingerprint('a')
  assert fingerprint('b') == first
  assert fingerprint('c', seed=1) != first
  assert fingerprint('d', compressed_cases.CASES['w4a16']) != first


def test_what_is_told(tmp_path):
  _save(tmp_path / 'base', compressed_cases.CASES['fp8-channel'])
  lines, loads = supported.describe(str(tmp_path / 'base'))
  text = '\n'.join(lines)
  assert loads
  assert 'quantised: compressed-tensors: float-quantized, float8' in text
  assert '14 of 21 tensors' in text
  assert 'float8, dynamic scales' in text
  # Plans need no weights.
  architecture = known_models.read_architecture(str(tmp_path / 'base'))
  assert architecture.num_layers == 2


def test_a_method_that_is_not_supported_is_named(tmp_path):
  """Before any tensor is read."""
  _save(tmp_path / 'base')
  quantised_models.configure(tmp_path / 'base', {'quant_method': 'quip'})
  (tmp_path / 'base' / 'model.safetensors').write_bytes(b'broken')
  lines, loads = supported.describe(str(tmp_path / 'base'))
  assert not loads
  assert "quantization_config.quant_method is 'quip'" in lines[-1]


@pytest.mark.parametrize('tied', [False, True])
def test_exported_with_the_base(tmp_path, tied):
  """The quantised files are as they were, but for embedding and head."""
  base, out = tmp_path / 'base', tmp_path / 'out'
  _save(base, quiet=QUIET, tie_word_embeddings=tied)
  settings = {**INT4.config, 'ignore': []}
  quantised_models.configure(base, settings)
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.quick(tmp_path / 'run'), 'hf', str(out))
  assert json.loads((out / 'gate.json').read_text())['passed']
  before = safetensors.torch.load_file(base / 'model.safetensors')
  after = safetensors.torch.load_file(out / 'model.safetensors')
  changed = {'model.embed_tokens.weight', 'lm_head.weight'}
  assert before.keys() - changed == after.keys() - changed
  for name in before.keys() - changed:
    assert torch.equal(before[name], after[name])
  written = json.loads((out / 'config.json').read_text())
  assert written['quantization_config'] == {
    **settings,
    'ignore': ['lm_head'],
  }
  card = (out / 'README.md').read_text()
  assert 'pack-quantized, int4' in card
  # vLLM refuses float32 for such files.
  assert '--dtype' not in card


def test_a_quantised_head_gets_no_rows(tmp_path):
  base = tmp_path / 'base'
  _save(base, quantised=('_proj.weight', 'lm_head.weight'))
  quantised_models.configure(base, {**INT4.config, 'ignore': []})
  trained_runs.write_run(tmp_path / 'run', base)
  with pytest.raises(errors.UserError, match=r'lm_head\.weight .*quantised'):
    export.export(
      trained_runs.quick(tmp_path / 'run'), 'hf', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()
