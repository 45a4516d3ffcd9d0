"""Exports of tables that were trained on the text part of a larger model."""

import json

import pytest
import safetensors.torch
import torch
import trained_runs
import wrapped_models

from vtokens import export
from vtokens.host import errors
from vtokens.models.files import hf_directory

# Tokens of the tokenizer of `tiny_models`; of those the marks of turns.
_TOKENS, _MARKS = 259, (256, 257)


def _files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize('model_type', ['gemma3', 'qwen2_5_vl'])
def test_the_whole_model_takes_the_table(model_type, tmp_path):
  """The gate runs transformers' multimodal model; its files stay."""
  base, out = tmp_path / 'base', tmp_path / 'out'
  wrapped_models.save(base, model_type)
  before = _files(base)
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.settings(tmp_path / 'run'), 'vtokens', str(out))
  assert json.loads((out / 'gate.json').read_text())['passed']
  assert 'AutoModelForImageTextToText' in (out / 'README.md').read_text()
  assert _files(base) == before


@pytest.mark.parametrize(
  ('model_type', 'names'),
  [
    # Tied; a whole causal language model inside.
    (
      'gemma3',
      ('language_model.model.embed_tokens', 'language_model.lm_head'),
    ),
    # Tied; the head outside.
    pytest.param(
      'qwen2_5_vl',
      ('model.embed_tokens', 'lm_head'),
      marks=pytest.mark.exhaustive,
    ),
    # With a head of its own.
    pytest.param(
      'smolvlm',
      ('model.text_model.embed_tokens', 'lm_head'),
      marks=pytest.mark.exhaustive,
    ),
  ],
)
def test_the_vocabulary_of_the_text_part_grows(model_type, names, tmp_path):
  """The other tensors are those of the base, bit by bit."""
  base, out = tmp_path / 'base', tmp_path / 'out'
  # As many rows as the tokenizer has tokens.
  wrapped_models.save(base, model_type, _MARKS, vocab_size=_TOKENS)
  (base / 'preprocessor_config.json').write_text('{}')
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.settings(tmp_path / 'run'), 'hf', str(out))
  assert json.loads((out / 'gate.json').read_text())['passed']
  assert 'AutoModelForImageTextToText' in (out / 'README.md').read_text()
  assert (out / 'preprocessor_config.json').exists()
  before = safetensors.torch.load_file(base / 'model.safetensors')
  after = safetensors.torch.load_file(out / 'model.safetensors')
  changed = {f'{name}.weight' for name in names}
  assert after.keys() - before.keys() <= changed
  for name, tensor in before.items():
    if name not in changed:
      assert torch.equal(after[name], tensor), name
  # What was exported is a base.
  again = hf_directory.read_config(out)
  assert again.vocab_size == _TOKENS + trained_runs.ROWS
  assert not again.tie_embeddings


def test_formats_for_plain_decoders_are_refused(tmp_path):
  base, out = tmp_path / 'base', tmp_path / 'out'
  wrapped_models.save(base, 'qwen2_5_vl')
  trained_runs.write_run(tmp_path / 'run', base)
  with pytest.raises(errors.UserError, match=r'--to peft: .*multimodal'):
    export.export(trained_runs.settings(tmp_path / 'run'), 'peft', str(out))
  assert not out.exists()
