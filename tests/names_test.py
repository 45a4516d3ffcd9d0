"""The names of `vtokens` itself."""

import json
import subprocess
import sys

import pytest
import tiny_run

import vtokens
from vtokens.evaluation import eval_config
from vtokens.run import workdir

PROGRAM = """
import sys
import vtokens
assert 'jax' not in sys.modules and 'numpy' not in sys.modules
try:
  raise vtokens.UserError('x')
except vtokens.UserError:
  pass
assert 'jax' not in sys.modules
assert {'load', 'train', 'evaluate', 'open_index', 'Run'} <= set(dir(vtokens))
before = vtokens.train
import vtokens.train
from vtokens.train import train
assert vtokens.train is before and callable(vtokens.train)
assert vtokens.train.train is train
from vtokens import evaluate
assert callable(evaluate) and callable(evaluate.evaluate)
try:
  vtokens.nothing
except AttributeError as e:
  assert 'nothing' in str(e)
else:
  raise AssertionError
"""


def test_names_are_lazy_and_stay():
  subprocess.run([sys.executable, '-c', PROGRAM], check=True)


@pytest.mark.slow
def test_a_run_from_a_program(tmp_path):
  place = tiny_run.make_place(tmp_path)
  cfg = place.load(tmp_path / 'run')
  summary = vtokens.train(cfg)
  assert summary == workdir.RunDir(tmp_path / 'run').read_summary()
  cfg.optim.learning_rate = -1.0
  with pytest.raises(vtokens.UserError, match=r'config\.optim\.learning_rate'):
    vtokens.train(cfg)
  run = vtokens.load(tmp_path / 'run')
  assert run.score(str(tmp_path / 'test.jsonl'), num_passages=2)['n'] == 8
  found = vtokens.evaluate(
    eval_config.Config(
      workdir=str(tmp_path / 'evaluated'),
      runs=(str(tmp_path / 'run'),),
      data=eval_config.Data(
        sources=(str(tmp_path / 'test.jsonl'),),
        max_prefix_tokens=48,
        max_suffix_tokens=32,
      ),
      conditions=('tokens',),
      num_passages=(2,),
      report=eval_config.Report(resamples=10, permutations=10),
    )
  )
  report = json.loads((tmp_path / 'evaluated' / 'report.json').read_text())
  assert found['cells'] == report['cells']
