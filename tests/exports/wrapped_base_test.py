"""Exports of tables that were trained on the text part of a larger model."""

import json

import pytest
import trained_runs
import wrapped_models

from vtokens import export
from vtokens.host import errors


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


def test_formats_for_plain_decoders_are_refused(tmp_path):
  base, out = tmp_path / 'base', tmp_path / 'out'
  wrapped_models.save(base, 'qwen2_5_vl')
  trained_runs.write_run(tmp_path / 'run', base)
  for to in ('hf', 'peft'):
    with pytest.raises(errors.UserError, match=f'--to {to}: .*multimodal'):
      export.export(trained_runs.settings(tmp_path / 'run'), to, str(out))
    assert not out.exists()
