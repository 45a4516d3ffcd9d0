"""Runs on bases with experts, states or latents, from training to answers."""

import json
import re

import decoder_cases
import numpy as np
import pytest
import tiny_models
import tiny_run
import trained_runs

from vtokens import ask, evaluate, export, train
from vtokens.host import errors, stopping

# Padding, and two examples to a row.
_CHANGES = {'data': {'batch_size': 4, 'examples_per_row': 2, 'shapes': ()}}


_BASES = {
  'gpt_oss': {
    'model_type': 'gpt_oss',
    'head_dim': 8,
    'sliding_window': 16,
    'num_local_experts': 4,
    'num_experts_per_tok': 2,
  },
  'qwen3_5': {'model_type': 'qwen3_5_text', **decoder_cases.DELTA},
  'deepseek_v3': {
    'model_type': 'deepseek_v3',
    **decoder_cases.CASES['deepseek_v3'][1],
  },
  'nemotron_h': {
    'model_type': 'nemotron_h',
    **decoder_cases.CASES['nemotron_h_dense'][1],
  },
  'gemma4': {
    'model_type': 'gemma4_text',
    **decoder_cases.CASES['gemma4'][1],
  },
  'lfm2': {'model_type': 'lfm2', **decoder_cases.CASES['lfm2'][1]},
}
_EXPORTED = {
  **_BASES,
  # As published: no token can be kept silent by logits of at most 3.
  'gemma4': {**_BASES['gemma4'], 'final_logit_softcapping': 30.0},
  'gemma3n': {
    'model_type': 'gemma3n_text',
    **decoder_cases.CASES['gemma3n'][1],
    # `tiny_models.silence` needs it.
    'altup_active_idx': 0,
    'final_logit_softcapping': 30.0,
  },
}


@pytest.mark.exhaustive
@pytest.mark.parametrize('base', _BASES)
def test_stopped_continued_asked_and_evaluated(tmp_path, base):
  """The table bit for bit as without a stop; answers as training scored."""
  place = tiny_run.make_place(tmp_path, **_BASES[base])
  whole, other = tmp_path / 'whole', tmp_path / 'stopped'
  train.train(place.load(whole, **_CHANGES), stopping.StopRequest())

  class StopAfter(stopping.StopRequest):
    def check_together(self):
      if tiny_run.last_step(other) >= 5:
        raise stopping.Stopped(2, agreed=True)

  with pytest.raises(stopping.Stopped):
    train.train(place.load(other, **_CHANGES), StopAfter())
  assert not (other / 'summary.json').exists()
  train.train(place.load(other, **_CHANGES), stopping.StopRequest())
  tiny_run.assert_same_result(other, whole)
  losses = [row['loss'] for row in tiny_run.rows(whole) if 'loss' in row]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])

  passages = ['Fact 70 is b.', 'Noise.']
  replies = ask.ask(str(whole), 'Is it 70?', passages, 4)
  assert 'with 4 virtual tokens' in replies

  cfg = tiny_run.evaluation(tmp_path / 'eval', place, (whole,))
  found = evaluate.evaluate(cfg, stopping.StopRequest())
  for k in (1, 4):
    [file] = [
      name
      for name in found['files']
      if {'predictions', 'whole', f'k{k}'} <= set(re.split(r'[/_.]', name))
    ]
    trained = tiny_run.answers(whole / 'predictions' / f'tokens_k{k}.jsonl')
    assert tiny_run.answers(tmp_path / 'eval' / file) == trained


@pytest.mark.exhaustive
@pytest.mark.parametrize('base', _EXPORTED)
def test_exported(tmp_path, base):
  """transformers and the table's own loader answer as the run does."""
  tiny_models.save(tmp_path / 'base', quiet=range(259, 320), **_EXPORTED[base])
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  for form in ('vtokens', 'hf'):
    out = tmp_path / form
    export.export(trained_runs.quick(tmp_path / 'run'), form, str(out))
    assert json.loads((out / 'gate.json').read_text())['passed']


def test_a_recurrent_base_trains_no_keys_and_values(tmp_path):
  place = tiny_run.make_place(tmp_path, **_BASES['qwen3_5'])
  cfg = place.load(tmp_path / 'run', virtual_tokens={'kind': 'kv'})
  with pytest.raises(errors.UserError, match=r"kind: 'kv'.*qwen3_5_text"):
    train.train(cfg, stopping.StopRequest())
