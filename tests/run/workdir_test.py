"""Tests of vtokens.run.workdir."""

import subprocess
import sys
import types

import numpy as np
import pytest

from vtokens import config
from vtokens.host import errors
from vtokens.run import run_identity
from vtokens.run.workdir import RecordedClaim, RunDir

_TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def run_dir(tmp_path):
  run_dir = RunDir(tmp_path / 'run')
  cfg = config.Config(
    base=config.Base(path='b'), data=config.Data(train=('a.jsonl',))
  )
  cfg.virtual_tokens.draw = 'fixed'
  cfg.virtual_tokens.num_virtual_tokens = 3
  cfg.virtual_tokens.num_active = 2
  cfg.eval.num_active = (2,)
  run_dir.claim(
    RecordedClaim(
      settings=run_identity.to_dict(cfg),
      data={'train': ['f']},
      base={'fingerprint': 'abc', 'tokenizer_sha256': 'def'},
    )
  )
  return run_dir


def test_a_claim_is_read_again(run_dir):
  recorded = RecordedClaim(**run_dir.read_claim())
  assert recorded.data == {'train': ['f']}
  assert recorded.base == {'fingerprint': 'abc', 'tokenizer_sha256': 'def'}
  assert recorded.settings['virtual_tokens']['num_active'] == 2


def test_an_empty_directory_has_no_claim(tmp_path):
  assert RecordedClaim(**RunDir(tmp_path).read_claim()) == RecordedClaim()


def test_a_finished_run_is_read(run_dir):
  run_dir.write_trained(
    'table', _TABLE, {'fingerprint': 'abc', 'quantize': 'int8'}
  )
  run_dir.finish({'k': {}})
  found = run_dir.read('--workdir', scored=True)
  np.testing.assert_array_equal(found.values, _TABLE)
  assert found.config.workdir == str(run_dir.path)
  assert found.config.data.train == ('a.jsonl',)
  assert (found.quantize, found.num_trained) == ('int8', 2)
  assert found.read_summary() == {'k': {}}
  assert found.read_data() == {'train': ['f']}


def test_a_run_without_its_table_or_result(run_dir):
  with pytest.raises(errors.UserError, match=r'--workdir: .*table\.safetens'):
    run_dir.read('--workdir')
  run_dir.write_trained('table', _TABLE, {})
  # The base of tables without a fingerprint is in base.json.
  run_dir.read('--workdir')
  with pytest.raises(errors.UserError, match=r'config\.x: .*summary\.json'):
    run_dir.read('config.x', scored=True)
  (run_dir.path / 'base.json').unlink()
  with pytest.raises(errors.UserError, match='which base'):
    run_dir.read('--workdir')


@pytest.mark.parametrize('lost', ['file', 'hash'])
def test_a_run_that_does_not_say_its_tokenizer(run_dir, lost):
  run_dir.write_trained('table', _TABLE, {'fingerprint': 'abc'})
  tokenizer = types.SimpleNamespace(sha256='def')
  base = types.SimpleNamespace(
    fingerprint='abc',
    tokenizer=tokenizer,
    settings=config.Base('lm'),
    config=types.SimpleNamespace(
      embed_dim=_TABLE.shape[1],
      num_layers=2,
      num_kv_heads=1,
      cache_widths=(4, 4),
    ),
  )
  run_dir.read('--workdir').check_base(base, tokenizer=True)
  tokenizer.sha256 = 'other'
  with pytest.raises(errors.UserError, match='tokenizer_sha256 def there'):
    run_dir.read('--workdir').check_base(base, tokenizer=True)
  if lost == 'file':
    (run_dir.path / 'base.json').unlink()
  else:
    run_dir.claim(RecordedClaim(base={'fingerprint': 'abc'}))
  found = run_dir.read('--workdir')
  found.check_base(base)
  with pytest.raises(errors.UserError, match=r'which tokenizer.*base\.json'):
    found.check_base(base, tokenizer=True)


def test_another_run_is_refused_by_what_differs(run_dir):
  run_dir.refuse('another config', [])
  with pytest.raises(errors.UserError) as e:
    run_dir.refuse('another config', ['a: 1 there, 2 now', 'b: x'])
  assert str(e.value).startswith(f'{run_dir.path} holds a run of another con')
  assert '\n  a: 1 there, 2 now\n  b: x\n' in str(e.value)
  assert 'config.workdir' in str(e.value)


def test_reading_needs_no_jax(run_dir):
  run_dir.write_trained('table', _TABLE, {'fingerprint': 'abc'})
  program = (
    'import sys; sys.modules["jax"] = None\n'
    'from vtokens.run.workdir import RunDir\n'
    'print(RunDir(sys.argv[1]).read("x").values.sum())'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(run_dir.path)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == '66.0\n'
