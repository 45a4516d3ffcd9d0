"""Exports for bases whose matrices have other names than Llama's."""

import json

import decoder_cases
import pytest
import trained_runs

from vtokens import export
from vtokens.models.families import registry
from vtokens.models.files import hf_directory

_exhaustive = pytest.mark.exhaustive
# Tokens of the tokenizer of `tiny_models`; of those the marks of turns.
_TOKENS, _MARKS = 259, (256, 257)
_TIE, _OLDER_TIE = '"tie_word_embeddings"', '"tie_embedding"'


@pytest.mark.parametrize(
  ('case', 'to', 'rows'),
  [
    ('falcon_multi_query', 'hf', _TOKENS),
    pytest.param('gpt_neox', 'hf', _TOKENS, marks=_exhaustive),
    pytest.param('lfm2', 'hf', _TOKENS, marks=_exhaustive),
    pytest.param('nemotron_h', 'hf', _TOKENS, marks=_exhaustive),
    pytest.param('nemotron_h', 'peft', 320, marks=_exhaustive),
    # PEFT changes rows that the matrix has.
    pytest.param('falcon_one_norm', 'peft', 320, marks=_exhaustive),
    pytest.param('gpt_neox', 'peft', 320, marks=_exhaustive),
  ],
)
def test_the_gate_is_passed(case, to, rows, tmp_path):
  base, out = tmp_path / 'base', tmp_path / 'out'
  quiet = (*_MARKS, *range(_TOKENS, rows))
  decoder_cases.save(base, case, vocab_size=rows, quiet=quiet)
  if case == 'lfm2':
    # As its first files have it.
    file = base / 'config.json'
    file.write_text(file.read_text().replace(_TIE, _OLDER_TIE))
  trained_runs.write_run(tmp_path / 'run', base)
  export.export(trained_runs.quick(tmp_path / 'run'), to, str(out))
  assert json.loads((out / 'gate.json').read_text())['passed']
  if to == 'hf':
    config = hf_directory.read_config(out)
    assert config.vocab_size == rows + trained_runs.ROWS
    names = registry.family_of(config).names
    shapes = hf_directory.SafetensorsSource(out).shapes()
    for part in ('embedding', 'head'):
      assert shapes[names[part]][0] == config.vocab_size
