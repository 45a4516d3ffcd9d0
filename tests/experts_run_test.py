"""A run on a base with experts, from training to answers."""

import json
import re

import numpy as np
import pytest
import tiny_run

from vtokens import ask, config, evaluate, train
from vtokens.evaluation import eval_config
from vtokens.host import stopping

# Padding, and two examples to a row.
_CHANGES = {'data': {'batch_size': 4, 'examples_per_row': 2, 'shapes': ()}}


def _answers(path):
  rows = map(json.loads, path.read_text().splitlines())
  return {row['id']: row['prediction'] for row in rows}


@pytest.mark.exhaustive
def test_stopped_continued_asked_and_evaluated(tmp_path):
  """The table bit for bit as without a stop; answers as training scored."""
  place = tiny_run.make_place(
    tmp_path,
    model_type='gpt_oss',
    head_dim=8,
    sliding_window=16,
    num_local_experts=4,
    num_experts_per_tok=2,
  )
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

  cfg = eval_config.Config(
    workdir=str(tmp_path / 'eval'),
    runs=(str(whole),),
    data=eval_config.Data(
      sources=(str(place.root / 'test.jsonl'),),
      max_prefix_tokens=48,
      max_suffix_tokens=32,
    ),
    conditions=('tokens', 'prompt', 'untouched'),
    num_active=(4, 1),
    num_passages=(2,),
    shuffle_passages=True,
    decode=config.Decode(batch_size=4, max_new_tokens=3),
    report=eval_config.Report(resamples=50, permutations=50),
  )
  cfg.templates.prompt = 'Q {question} A'
  cfg.templates.instruction = 'Do {question}'
  eval_config.validate(cfg)
  found = evaluate.evaluate(cfg, stopping.StopRequest())
  for k in (1, 4):
    [file] = [
      name
      for name in found['files']
      if {'predictions', 'whole', f'k{k}'} <= set(re.split(r'[/_.]', name))
    ]
    trained = _answers(whole / 'predictions' / f'tokens_k{k}.jsonl')
    assert _answers(tmp_path / 'eval' / file) == trained
