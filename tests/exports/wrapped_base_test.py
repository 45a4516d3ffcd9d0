"""Exports of tables that were trained on the text part of a larger model."""

import json

import decoder_cases
import pytest
import safetensors.torch
import torch
import trained_runs
import transformers
import wrapped_models

from vtokens import export
from vtokens.exports import trained_table
from vtokens.host import errors
from vtokens.models.files import hf_directory
from vtokens.serving import plug

# Tokens of the tokenizer of `tiny_models`; of those the marks of turns.
_TOKENS, _MARKS = 259, (256, 257)


def _files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize('model_type', ['gemma3', 'gemma4', 'qwen2_5_vl'])
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
    # Tied; with a second embedding matrix.
    (
      'gemma4',
      (
        'model.language_model.embed_tokens',
        'model.language_model.embed_tokens_per_layer',
        'lm_head',
      ),
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
  sizes = {'vocab_size': _TOKENS}
  if model_type == 'gemma4':
    sizes['vocab_size_per_layer_input'] = _TOKENS
    # Capped at 3, the logits of tokens that are never said would not be low.
    sizes['final_logit_softcapping'] = 30.0
  wrapped_models.save(base, model_type, _MARKS, **sizes)
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


def test_inputs_of_each_layer(tmp_path):
  """A table is put on the model and off it again; PEFT has no form for it."""
  base, out = tmp_path / 'base', tmp_path / 'out'
  decoder_cases.save(base, 'gemma4_shared')
  trained_runs.write_run(tmp_path / 'run', base)
  settings = trained_runs.settings(tmp_path / 'run')
  with pytest.raises(errors.UserError, match=r'--to peft: .*second embedding'):
    export.export(settings, 'peft', str(out))
  table = trained_table.read(str(tmp_path / 'run')).table
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  second = model.model.embed_tokens_per_layer
  kind, first = type(second), table.meta.tokens.ids[0]
  plug.attach(model, table)
  ids = torch.tensor([[5, first, first + 1]])
  assert torch.equal(second(ids), second(ids.masked_fill(ids >= first, 0)))
  plug.detach(model)
  assert type(second) is kind


def test_formats_for_plain_decoders_are_refused(tmp_path):
  base, out = tmp_path / 'base', tmp_path / 'out'
  wrapped_models.save(base, 'qwen2_5_vl')
  trained_runs.write_run(tmp_path / 'run', base)
  with pytest.raises(errors.UserError, match=r'--to peft: .*multimodal'):
    export.export(trained_runs.settings(tmp_path / 'run'), 'peft', str(out))
  assert not out.exists()
