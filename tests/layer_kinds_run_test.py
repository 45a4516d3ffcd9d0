"""Runs on bases with experts, states or latents, from training to answers."""

import json
import math
import re

import decoder_cases
import device_programs
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import tiny_run
import trained_runs

from vtokens import ask, evaluate, export, train
from vtokens.host import errors, stopping
from vtokens.run import tracking

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
_QUANTIZE = {'gpt_oss': 'mxfp4'}
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
  changes = {**_CHANGES, 'base': {'quantize': _QUANTIZE.get(base, 'none')}}
  whole, other = tmp_path / 'whole', tmp_path / 'stopped'
  train.train(place.load(whole, **changes), stopping.StopRequest())

  class StopAfter(stopping.StopRequest):
    def check_together(self):
      if tiny_run.last_step(other) >= 5:
        raise stopping.Stopped(2, agreed=True)

  with pytest.raises(stopping.Stopped):
    train.train(place.load(other, **changes), StopAfter())
  assert not (other / 'summary.json').exists()
  train.train(place.load(other, **changes), stopping.StopRequest())
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


_TRAIN = """
import pathlib, sys
import tiny_run
from vtokens import train
from vtokens.host import stopping

shape = eval(sys.argv[2])
place = tiny_run.Place(pathlib.Path(sys.argv[1]))
cfg = place.load(
  place.root / f'run{shape}',
  mesh={'shape': shape},
  train={'num_steps': 5, 'checkpoint_every': 5},
  data={
    'test': (), 'validation': (), 'batch_size': 8, 'examples_per_row': 2,
    'shapes': ((96, 64),),
  },
  eval={'conditions': ()},
  optim={'learning_rate': 0.01},
)
train.train(cfg, stopping.StopRequest())
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize('base', _BASES)
def test_trained_over_eight_devices(tmp_path, base):
  """Losses and table as of one device."""
  place = tiny_run.make_place(tmp_path, **_BASES[base])
  found = []
  for shape in ((1, 1, 1), (2, 2, 2)):
    devices = math.prod(shape)
    device_programs.run(_TRAIN, str(tmp_path), str(shape), devices=devices)
    workdir = place.root / f'run{shape}'
    table = safetensors.numpy.load_file(workdir / 'table.safetensors')
    rows = tracking.read_metrics(workdir / 'metrics.jsonl')
    losses = [row['loss'] for row in rows]
    found.append((table['virtual_tokens'], losses))
  (table, losses), (sharded, sharded_losses) = found
  assert len(losses) == 5
  np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
  np.testing.assert_allclose(
    sharded, table, rtol=1e-5, atol=1e-5 * np.abs(table).max()
  )


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
