"""Tests of vtokens.train: the whole command on a tiny random Llama."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import compilations
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import tiny_run

from vtokens import config, train
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.devices import partitioning
from vtokens.host import errors, stopping
from vtokens.method import optim, steps
from vtokens.models import frozen_base
from vtokens.models.tokenizers import tokenizer as tokenizer_lib
from vtokens.run import checkpoints
from vtokens.scoring import metrics
from vtokens.serving import table_file

_ROOT = pathlib.Path(__file__).parents[1]
# Two examples to a row, each with two suffixes, the last of which teaches.
_PACKED = (
  '--config.data.examples_per_row=2',
  '--config.virtual_tokens.draws_per_example=2',
  '--config.virtual_tokens.always_all=True',
  '--config.train.distill.weight=0.5',
  '--config.data.shapes=((64, 128), (96, 128))',
)

# Train and nothing else.
_ONLY_TRAIN = (
  '--config.data.test=()',
  '--config.data.validation=()',
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tiny_run.make_place(tmp_path_factory.mktemp('train'))


@pytest.fixture(scope='module')
def reference(place):
  """An uninterrupted run: its work directory and what it printed."""
  workdir = place.root / 'reference'
  done = place.run(place.command(workdir))
  assert done.returncode == 0, done.stderr
  return workdir, done


def _tree(directory):
  """Everything in a directory that could change."""
  return {
    path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
    for path in directory.rglob('*')
  }


def _assert_error(done, *parts):
  assert done.returncode == 1, done.stderr
  assert 'Traceback' not in done.stderr
  message = done.stderr[done.stderr.index('error: ') :]
  for part in parts:
    assert part in message


def test_files_of_a_run(place, reference):
  workdir, _ = reference
  names = {path.name for path in workdir.iterdir()}
  assert names == {
    '.lock',
    'base.json',
    'best',
    'checkpoints',
    'config.json',
    'data.json',
    'metrics.jsonl',
    'predictions',
    'summary.json',
    'table.safetensors',
    'tensorboard',
    'tokens',
    'training.png',
    'untrained.json',
  }
  assert not list(workdir.rglob('*.part*'))
  values = json.loads((workdir / 'config.json').read_text())
  assert config.from_dict({**values, 'workdir': str(workdir)}) == place.load(
    workdir
  )
  latest = [p.name for p in (workdir / 'checkpoints').iterdir()]
  assert sorted(latest) == ['12', '9']
  assert 1 <= len(list((workdir / 'best').iterdir())) <= 2
  image = matplotlib.image.imread(workdir / 'training.png')
  assert (image[..., :3].min(axis=2) < 0.9).mean() > 0.01
  assert not (workdir / 'skipped_records.txt').exists()


def test_summary(reference):
  workdir, _ = reference
  summary = tiny_run.summary(workdir)
  conditions = ['closed_book', 'concat', 'prompt', 'chat_prompt', 'tokens']
  assert list(summary) == [
    'conditions',
    'k',
    'steps',
    'train_seconds',
    'total_seconds',
    'peak_rss_gib',
    'base_fingerprint',
    'quantize',
    'table_sha256',
  ]
  assert list(summary['conditions']) == conditions
  for scores in summary['conditions'].values():
    assert list(scores) == ['em', 'f1', 'n', 'confidence', 'risk_area']
    assert scores['confidence'] < 0
    assert 0 <= scores['em'] <= 100
    assert 0 <= scores['f1'] <= 100
    assert scores['n'] == 8
  assert list(summary['k']) == ['1', '4']
  for scores in summary['k'].values():
    assert list(scores) == ['em', 'f1', 'confidence', 'risk_area']
  tokens = summary['conditions']['tokens']
  assert {**summary['k']['4'], 'n': 8} == tokens
  assert summary['steps'] == tiny_run.NUM_STEPS
  assert 0 < summary['train_seconds'] < summary['total_seconds']
  assert 0.05 < summary['peak_rss_gib'] < 6
  table, metadata = table_file.load(workdir / 'table.safetensors')
  assert table.shape == (tiny_run.ROWS, tiny_run.DIM)
  assert summary['table_sha256'] == table_file.sha256(table)
  assert summary['base_fingerprint'] == metadata['fingerprint']
  # The table is that of the best validation.
  validations = [
    row for row in tiny_run.rows(workdir) if 'validation_loss' in row
  ]
  best = min(validations, key=lambda row: row['validation_loss'])
  assert metadata['step'] == best['step']


def test_predictions(reference):
  workdir, _ = reference
  summary = tiny_run.summary(workdir)
  expected = {
    name: summary['conditions'][name]
    for name in ('closed_book', 'concat', 'prompt', 'chat_prompt')
  } | {f'tokens_k{k}': scores for k, scores in summary['k'].items()}
  found = {path.stem for path in (workdir / 'predictions').iterdir()}
  assert found == set(expected)
  for name, scores in expected.items():
    path = workdir / 'predictions' / f'{name}.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row['id'] for row in rows] == [f'q{i}' for i in range(70, 78)]
    again = metrics.score(
      [row['prediction'] for row in rows], [row['answers'] for row in rows]
    )
    assert again.em == pytest.approx(scores['em'])
    assert again.f1 == pytest.approx(scores['f1'])


def test_metrics(reference):
  workdir, _ = reference
  rows = tiny_run.rows(workdir)
  train_rows = [row for row in rows if 'loss' in row]
  assert [row['step'] for row in train_rows] == list(
    range(1, tiny_run.NUM_STEPS + 1)
  )
  for row in train_rows:
    assert set(row) == {
      'step',
      'loss',
      'grad_norm',
      'tokens',
      'learning_rate',
      'padding',
      'passages_dropped',
      'passages_cut',
    }
    assert 0 < row['padding'] < 0.7
  validations = [row for row in rows if 'loss' not in row]
  assert [row['step'] for row in validations] == [6, 12]
  for row in validations:
    assert set(row) == {
      'step',
      'validation_loss',
      'validation_em',
      'validation_f1',
    }
  # The answer is always the same.
  losses = [row['loss'] for row in train_rows]
  assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
  assert validations[-1]['validation_loss'] < 0.9 * losses[0]


def test_what_a_run_prints(reference):
  workdir, done = reference
  out = done.stdout
  assert (
    f'table: {tiny_run.ROWS} virtual tokens x {tiny_run.DIM} = 128 parameters'
    in out
  )
  assert 'data: 60 training, 6 validation, 8 test questions' in out
  before, after = out.split('step 6: validation loss ')
  for name in ('closed_book', 'concat', 'prompt', 'chat_prompt'):
    assert f'\n{name} ' in before
    assert f'\n{name} ' in after
  for k in (1, 4):
    assert f'\ntokens, k={k} ' in after
  sample = after[after.index('\none of 8 test questions, ') :]
  for label in ('expected', 'without passages', 'with 4 virtual tokens'):
    assert f'\n  {label} ' in sample
  for command in ('ask', 'serve'):
    assert f'python -m vtokens.{command} --workdir {workdir} ' in sample
  # Some passages do not fit; the last metrics count them.
  last = [row for row in tiny_run.rows(workdir) if 'loss' in row][-1]
  assert last['passages_dropped'] + last['passages_cut'] > 0
  assert (
    f'{last["passages_dropped"]} dropped, {last["passages_cut"]} cut' in out
  )
  for shown in ('loss ', 'lr ', 'examples/s', '12/12'):
    assert shown in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_finished_run_shows_its_result_again(place, reference):
  workdir, first = reference
  before = _tree(workdir)
  done = place.run(place.command(workdir))
  assert done.returncode == 0, done.stderr
  result = first.stdout[first.stdout.index('result') :]
  assert done.stdout.endswith(result)
  assert 'training' not in done.stderr
  assert _tree(workdir) == before


@pytest.mark.slow
def test_killed_at_any_time_ends_the_same(place, reference):
  workdir = place.root / 'killed'
  directory = workdir / 'checkpoints'
  for condition in (
    # Before the first checkpoint.
    lambda: tiny_run.last_step(workdir) >= 1,
    # While a later checkpoint is written, if that moment is caught.
    lambda: (
      tiny_run.last_step(workdir) > 9
      or (
        tiny_run.last_step(workdir) > tiny_run.CHECKPOINT_EVERY
        and any('tmp' in path.name for path in directory.iterdir())
      )
    ),
    # While the validation after this step is on, or soon after.
    lambda: tiny_run.last_step(workdir) >= tiny_run.NUM_STEPS,
    # Before the tokens are scored.
    lambda: (workdir / 'table.safetensors').exists(),
  ):
    status, _ = place.signal_when(
      condition, signal.SIGKILL, place.command(workdir)
    )
    assert status == -signal.SIGKILL
    assert not (workdir / 'summary.json').exists()
  done = place.run(place.command(workdir))
  assert done.returncode == 0, done.stderr
  assert f'continuing after step {tiny_run.NUM_STEPS}' in done.stdout
  tiny_run.assert_same_result(workdir, reference[0])
  assert not [p for p in workdir.rglob('*') if 'tmp' in p.name]


@pytest.mark.exhaustive
def test_killed_at_random_ends_the_same(place):
  """As often as VTOKENS_KILLS says; half of it while the run still starts."""
  kills = int(os.environ.get('VTOKENS_KILLS', '4'))
  overrides = (
    '--config.data.test=()',
    f'--config.train.num_steps={100 + 50 * kills}',
    '--config.train.checkpoint_every=5',
    '--config.train.validate_every=60',
  )
  whole = place.root / 'random_whole'
  began = time.monotonic()
  done = place.run(place.command(whole, *overrides))
  assert done.returncode == 0, done.stderr
  seconds = time.monotonic() - began

  workdir = place.root / 'random_killed'
  rng = np.random.default_rng(0)
  for number in range(kills):
    step = _last_checkpoint(workdir)
    if number % 2:
      moment = _Moment(lambda: True, rng.uniform(0, seconds / 2))
      # Not so late that nothing is left for the others to kill.
      late = _Moment(
        lambda step=step: _last_checkpoint(workdir) > step + 10, 0.0
      )
    else:
      # Not before there is something to continue from.
      moment = _Moment(
        lambda step=step: _last_checkpoint(workdir) > step,
        rng.uniform(0, 0.3),
      )
      late = moment
    command = place.command(workdir, *overrides)
    status, out = place.signal_when(
      lambda moment=moment, late=late: moment() or late(),
      signal.SIGKILL,
      command,
    )
    assert status == -signal.SIGKILL, out
  done = place.run(place.command(workdir, *overrides))
  assert done.returncode == 0, done.stderr
  assert 'continuing after step' in done.stdout
  tiny_run.assert_same_result(workdir, whole)


@pytest.mark.slow
def test_killed_at_changes_of_checkpoints(place, tmp_path):
  """As often as VTOKENS_KILLS says; see aimed_kills.py."""
  kills = int(os.environ.get('VTOKENS_KILLS', '4'))
  done = subprocess.run(
    [
      sys.executable,
      tiny_run.ROOT / 'tests' / 'support' / 'aimed_kills.py',
      place.root,
      tmp_path,
      str(kills),
    ],
    cwd=place.root,
    env={
      **place.env,
      # With PyTorch, which the tiny models are written by.
      'PYTHONPATH': f'{tiny_run.ROOT}:{tiny_run.ROOT / "tests" / "support"}',
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['wrong'] == []
  assert found['kills'] >= kills
  falling, rising = found['losses']['falling'], found['losses']['rising']
  assert falling == sorted(falling, reverse=True)
  assert rising[0] == min(rising)
  for changes in found['changes'].values():
    assert 'replace best/1/manifest.json' in changes
    assert 'replace checkpoints/2/manifest.json' in changes


def _last_checkpoint(workdir):
  directory = workdir / 'checkpoints'
  names = [p.name for p in directory.iterdir()] if directory.exists() else []
  return max((int(name) for name in names if name.isdecimal()), default=0)


class _Moment:
  """Some seconds after something has happened."""

  def __init__(self, happened, seconds):
    self._happened = happened
    self._seconds = seconds
    self._until = None

  def __call__(self):
    if self._until is None and self._happened():
      self._until = time.monotonic() + self._seconds
    return self._until is not None and time.monotonic() >= self._until


@pytest.mark.slow
def test_stopped_by_signals_ends_the_same(place, reference):
  workdir = place.root / 'stopped'
  command = place.command(workdir)
  seen = 0
  # The first between steps, the second most likely in the validation.
  for name, at_step in (('SIGTERM', 1), ('SIGINT', 5)):
    status, out = place.signal_when(
      lambda step=at_step: tiny_run.last_step(workdir) >= step,
      signal.Signals[name],
      command,
    )
    assert status == 128 + signal.Signals[name], out
    assert 'Traceback' not in out
    assert (f'continuing after step {seen}' in out) == (seen > 0)
    seen = tiny_run.last_step(workdir)
    assert at_step <= seen < tiny_run.NUM_STEPS
    assert not (workdir / 'summary.json').exists()
    # The last line can be pasted into a shell.
    last = out.splitlines()[-1]
    start = f'stopped by {name}; continue with: '
    assert last.startswith(start)
    program, *args = shlex.split(last.removeprefix(start))
    assert program == 'python'
    command = [sys.executable, *args]
  done = place.run(command)
  assert done.returncode == 0, done.stderr
  assert f'continuing after step {seen}' in done.stdout
  tiny_run.assert_same_result(workdir, reference[0])


@pytest.mark.exhaustive
def test_killed_with_several_examples_to_a_row(place):
  """And what was tokenised before the kill is not tokenised again."""
  overrides = (*_PACKED, *_ONLY_TRAIN)
  whole = place.root / 'packed_whole'
  done = place.run(place.command(whole, *overrides))
  assert done.returncode == 0, done.stderr

  workdir = place.root / 'packed_killed'
  for at_step in (tiny_run.CHECKPOINT_EVERY + 1, 3 * tiny_run.CHECKPOINT_EVERY):
    status, _ = place.signal_when(
      lambda step=at_step: tiny_run.last_step(workdir) >= step,
      signal.SIGKILL,
      place.command(workdir, *overrides),
    )
    assert status == -signal.SIGKILL
    assert not (workdir / 'summary.json').exists()
  tokens = _tree(workdir / 'tokens')
  assert len([path for path in tokens if path.name == 'meta.json']) == 1
  done = place.run(place.command(workdir, *overrides))
  assert done.returncode == 0, done.stderr
  assert 'continuing after step ' in done.stdout
  tiny_run.assert_same_result(workdir, whole)
  assert _tree(workdir / 'tokens') == tokens
  losses = [row['loss'] for row in tiny_run.rows(workdir)]
  assert len(losses) == tiny_run.NUM_STEPS
  assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
  for row in tiny_run.rows(workdir):
    assert row['taught'] == row['tokens'] / 2
    assert row['kl'] > 0
    assert row['loss'] != row['nll']


@pytest.mark.exhaustive
def test_killed_with_the_tokens_first(place):
  """Two examples to a row, each with its passages in the suffix."""
  overrides = (
    '--config.virtual_tokens.position=first',
    '--config.data.examples_per_row=2',
    '--config.data.shapes=((1, 112), (1, 160))',
    '--config.data.test=()',
  )
  whole = place.root / 'first_whole'
  done = place.run(place.command(whole, *overrides))
  assert done.returncode == 0, done.stderr
  workdir = place.root / 'first_killed'
  for at_step in (tiny_run.CHECKPOINT_EVERY + 1, 3 * tiny_run.CHECKPOINT_EVERY):
    status, _ = place.signal_when(
      lambda step=at_step: tiny_run.last_step(workdir) >= step,
      signal.SIGKILL,
      place.command(workdir, *overrides),
    )
    assert status == -signal.SIGKILL
    assert not (workdir / 'summary.json').exists()
  done = place.run(place.command(workdir, *overrides))
  assert done.returncode == 0, done.stderr
  assert 'continuing after step ' in done.stdout
  tiny_run.assert_same_result(workdir, whole)
  losses = [row['loss'] for row in tiny_run.rows(workdir) if 'loss' in row]
  assert len(losses) == tiny_run.NUM_STEPS
  assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_directory_of_another_config(place, reference):
  workdir, _ = reference
  before = _tree(workdir)
  done = place.run(
    place.command(
      workdir, '--config.optim.learning_rate=0.1', '--config.train.num_steps=13'
    )
  )
  _assert_error(
    done,
    f'error: {workdir} holds a run of another config:\n',
    '\n  config.optim.learning_rate: 1.0 there, 0.1 now\n',
    '\n  config.train.num_steps: 12 there, 13 now\n',
  )
  assert _tree(workdir) == before


def _half(reference, workdir):
  """A copy of a finished run as if it had been killed after step 9."""
  shutil.copytree(reference[0], workdir)
  (workdir / 'summary.json').unlink()
  (workdir / 'table.safetensors').unlink()
  shutil.rmtree(workdir / 'checkpoints' / '12')
  shutil.rmtree(workdir / 'best' / '12', ignore_errors=True)


def test_files_that_moved(place, reference, tmp_path, capsys, monkeypatch):
  """A run goes on with the same files elsewhere, relative or absolute."""
  moved = tmp_path / 'moved'
  moved.mkdir()
  shutil.copytree(place.root / 'base1', moved / 'base')
  for name in ('train', 'validation', 'test'):
    shutil.copy(place.root / f'{name}.jsonl', moved)
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / 'run'
  _half(reference, workdir)
  data = {
    name: (f'moved/{name}.jsonl',) for name in ('train', 'validation', 'test')
  }
  cfg = place.load(
    workdir,
    base={'path': str(moved / 'base')},
    data={**data, 'on_bad_record': 'skip'},
    train={'checkpoint_every': 2, 'keep_checkpoints': 5},
    eval={'max_test': 8},
  )
  cfg.train.validate_every = 6
  train.train(cfg, stopping.StopRequest())
  said = capsys.readouterr().out
  assert 'continuing after step 9' in said
  for field, path in (
    ('base.path', f"'{moved}/base'"),
    ('data.train', "['moved/train.jsonl']"),
    ('data.validation', "['moved/validation.jsonl']"),
    ('data.test', "['moved/test.jsonl']"),
  ):
    (line,) = [x for x in said.splitlines() if x.startswith(f'config.{field}:')]
    assert line.endswith(f' there, {path} now; the content is the same')
  tiny_run.assert_same_result(workdir, reference[0])
  kept = json.loads((workdir / 'config.json').read_text())
  assert kept['base']['path'] == str(moved / 'base')
  # Back again, and finished.
  train.train(place.load(workdir), stopping.StopRequest())
  assert f"there, '{place.root}/base' now" in capsys.readouterr().out


def test_other_content_at_the_same_path(place, reference, tmp_path):
  for name, line in (
    ('train', 'config.data.train: {}: '),
    ('validation', 'config.data.validation: '),
    ('test', 'config.data.test: '),
  ):
    path = tmp_path / f'{name}.jsonl'
    rows = [tiny_run.record(i) for i in range(60)]
    rows[0]['answers'] = ['c']
    tiny_run.write(path, rows)
    cfg = place.load(reference[0], data={name: (str(path),)})
    with pytest.raises(errors.UserError, match='other data') as e:
      train.train(cfg, stopping.StopRequest())
    assert f'\n  {line.format(path)}' in str(e.value)


def test_data_json_of_an_earlier_version(place, reference, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(reference[0], workdir)
  path = workdir / 'data.json'
  now = json.loads(path.read_text())
  (digest,) = now['train']
  before = {
    'train': {'/elsewhere/train.jsonl': digest},
    **{name: now[name] for name in ('validation', 'test')},
  }
  path.write_text(json.dumps(before))
  train.train(place.load(workdir), stopping.StopRequest())
  for named in ({'/elsewhere/other.jsonl': digest}, {'train.jsonl': 'x'}, {}):
    path.write_text(json.dumps(before | {'train': named}))
    with pytest.raises(errors.UserError, match='other data'):
      train.train(place.load(workdir), stopping.StopRequest())


def test_directory_of_an_earlier_version(place, reference, tmp_path):
  workdir = tmp_path / 'earlier'
  shutil.copytree(reference[0], workdir)
  kept = json.loads((workdir / 'config.json').read_text())
  del kept['base']['quantize'], kept['virtual_tokens']['draws_per_example']
  (workdir / 'config.json').write_text(json.dumps(kept))
  done = place.run(place.command(workdir))
  assert done.returncode == 0, done.stderr
  assert 'holds the finished run' in done.stdout
  done = place.run(place.command(workdir, '--config.base.quantize=int8'))
  _assert_error(done, "\n  config.base.quantize: 'none' there, 'int8' now\n")


def test_a_finished_run_teaches_another(place, reference, tmp_path):
  teacher = tmp_path / 'teacher'
  shutil.copytree(reference[0], teacher)

  def load(workdir, **changes):
    distill = config.Distill(
      weight=0.9, passages='gold', tokens='run', run=str(teacher)
    )
    return place.load(
      workdir,
      train={'num_steps': 4, 'distill': distill, 'checkpoint_every': 2},
      data={'validation': (), 'test': ()},
      **changes,
    )

  workdir = tmp_path / 'taught'
  summary = train.train(load(workdir), stopping.StopRequest())
  assert summary['steps'] == 4
  for row in tiny_run.rows(workdir):
    assert 0 < row['taught'] <= row['tokens']
    assert row['kl'] > 0
  data = json.loads((workdir / 'data.json').read_text())
  assert data['teacher'] == tiny_run.summary(reference[0])['table_sha256']
  assert 'teacher' not in json.loads((teacher / 'data.json').read_text())

  # The run may have moved.
  teacher = teacher.rename(tmp_path / 'moved')
  again = train.train(load(workdir), stopping.StopRequest())
  assert again == summary
  with pytest.raises(errors.UserError) as caught:
    train.train(
      load(tmp_path / 'other', virtual_tokens={'position': 'last'}),
      stopping.StopRequest(),
    )
  assert str(caught.value) == (
    f'config.train.distill.run: {teacher} was trained with '
    "config.virtual_tokens.position='middle', expected 'last' as in this run"
  )
  table = np.ones((4, tiny_run.DIM), np.float32)
  _, metadata = table_file.load(teacher / 'table.safetensors')
  table_file.save(teacher / 'table.safetensors', table, metadata)
  with pytest.raises(errors.UserError, match=r'config\.train\.distill\.run: '):
    train.train(load(workdir), stopping.StopRequest())
  with pytest.raises(errors.UserError, match='holds no finished run'):
    teacher = tmp_path / 'nowhere'
    train.train(load(tmp_path / 'another'), stopping.StopRequest())


def test_directory_of_another_base(place, reference):
  workdir, _ = reference
  before = _tree(workdir)
  base = place.root / 'base'
  base.unlink()
  base.symlink_to('base2')
  try:
    done = place.run(place.command(workdir))
  finally:
    base.unlink()
    base.symlink_to('base1')
  fingerprint = tiny_run.summary(workdir)['base_fingerprint']
  _assert_error(
    done,
    f'error: {workdir} holds a run of another base:\n',
    f"\n  base.fingerprint: '{fingerprint}' there, '",
  )
  assert 'tokenizer' not in done.stderr
  assert _tree(workdir) == before


def test_bad_record_then_skipped(place, tmp_path):
  path = tmp_path / 'bad.jsonl'
  rows = [tiny_run.record(i) for i in range(8)]
  rows[2]['answers'] = []
  del rows[5]['question']
  tiny_run.write(path, rows)
  command = place.command(
    tmp_path / 'run',
    f'--config.data.train={path}',
    '--config.train.num_steps=2',
    '--config.optim.warmup_steps=1',
    *_ONLY_TRAIN,
  )
  done = place.run(command)
  _assert_error(done, f'error: {path}:3: answers: ', 'on_bad_record=skip')
  # The advice works as it stands, in the same directory.
  done = place.run([*command, '--config.data.on_bad_record=skip'])
  assert done.returncode == 0, done.stderr
  listed = tmp_path / 'run' / 'skipped_records.txt'
  assert (
    f'skipped 2 bad records, listed in {listed}; the first: {path}:3: answers: '
    in done.stdout
  )
  assert 'data: 6 training, 0 validation, 0 test questions' in done.stdout
  report = listed.read_text().splitlines()
  assert [line.split(': ')[:2] for line in report] == [
    [f'{path}:3', 'answers'],
    [f'{path}:6', 'question or query'],
  ]
  summary = tiny_run.summary(tmp_path / 'run')
  assert summary['steps'] == 2
  assert summary['conditions'] == summary['k'] == {}
  # What is kept of the data does not hide them from the next process.
  before = report
  (tmp_path / 'run' / 'summary.json').unlink()
  done = place.run([*command, '--config.data.on_bad_record=skip'])
  assert done.returncode == 0, done.stderr
  assert 'skipped 2 bad records' in done.stdout
  assert listed.read_text().splitlines() == before


def _batch_ids(cfg, step):
  """Ids of the records of a step, counted from 1."""
  tokenizer = tokenizer_lib.load_tokenizer(cfg.base.path)
  assembler = Assembler.for_run(tokenizer, cfg)
  mixture, left_out = training_set.open_training_set(cfg, assembler, [], print)
  assert left_out == []
  batches = pipeline.TrainBatches(
    mixture,
    cfg.data,
    cfg.virtual_tokens,
    assembler,
    tiny_models.VOCAB_SIZE,
    cfg.seed,
  )
  with batches.starting_at(step - 1) as stream:
    return next(stream).ids


def test_loss_that_is_not_finite(place, tmp_path):
  """A character whose embedding is infinite, in one question."""
  base = tmp_path / 'base'
  base.mkdir()
  for path in (place.root / 'base1').iterdir():
    (base / path.name).write_bytes(path.read_bytes())
  weights = safetensors.numpy.load_file(base / 'model.safetensors')
  (bad_id,) = tokenizer_lib.load_tokenizer(base).encode('~')
  weights['model.embed_tokens.weight'][bad_id, 0] = np.inf
  safetensors.numpy.save_file(
    weights, base / 'model.safetensors', metadata={'format': 'pt'}
  )
  at_step = 5
  bad, *_ = _batch_ids(place.load(tmp_path / 'ids'), at_step)
  rows = [tiny_run.record(i) for i in range(60)]
  for row in rows:
    if row['id'] == bad:
      row['question'] = row['question'].replace('?', '~')
  tiny_run.write(tmp_path / 'bad.jsonl', rows)

  done = place.run(
    place.command(
      tmp_path / 'run',
      f'--config.base.path={base}',
      f'--config.data.train={tmp_path / "bad.jsonl"}',
      '--config.train.checkpoint_every=2',
      *_ONLY_TRAIN,
    )
  )
  _assert_error(done, f'loss nan, gradient norm nan at step {at_step}; ')
  ids = done.stderr.split('its examples: ')[1].split('. ')[0].split(', ')
  assert len(ids) == 4
  assert bad in ids
  assert not (tmp_path / 'run' / 'summary.json').exists()

  optimizer = optim.make_optimizer(config.Optim(), 200)
  table = jnp.zeros((tiny_run.ROWS, tiny_run.DIM))
  like = steps.TrainState(table, optimizer.init(table), jnp.int32(0))
  saved = checkpoints.Checkpoints(tmp_path / 'run', 2).restore(like)
  assert saved is not None
  assert saved[1]['step'] == at_step - 1
  for leaf in jax.tree.leaves(saved[0]):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize('part', ['train', 'validation', 'test'])
def test_question_that_does_not_fit(place, tmp_path, part):
  rows = [tiny_run.record(i) for i in range(8)]
  rows[6]['question'] = 'Which? ' * 10
  tiny_run.write(tmp_path / 'long.jsonl', rows)
  cfg = place.load(
    tmp_path / 'run', data={part: (str(tmp_path / 'long.jsonl'),)}
  )
  # Other parts may use these ids too: each is read by itself.
  with pytest.raises(errors.UserError, match='record q6: ') as e:
    train.train(cfg, stopping.StopRequest())
  assert 'config.data.max_suffix_tokens' in str(e.value)
  # So that a larger limit is not refused as another config.
  assert {path.name for path in (tmp_path / 'run').iterdir()} == {
    '.lock',
    'tokens',
  }


def test_question_that_does_not_fit_ends_the_command(place, tmp_path):
  rows = [tiny_run.record(i) for i in range(8)]
  rows[6]['question'] = 'Which? ' * 10
  tiny_run.write(tmp_path / 'long.jsonl', rows)
  done = place.run(
    place.command(
      tmp_path / 'run', f'--config.data.train={tmp_path / "long.jsonl"}'
    )
  )
  _assert_error(
    done, 'error: record q6: ', 'do not fit config.data.max_suffix_tokens=32 '
  )
  assert {path.name for path in (tmp_path / 'run').iterdir()} == {
    '.lock',
    'tokens',
  }


@contextlib.contextmanager
def _watched(monkeypatch):
  """Yields what `train.train` makes: its base and loop."""
  made = {}

  def watch(patch, place, name, key):
    make = getattr(place, name)

    def watched(*args, **kwargs):
      made[key] = make(*args, **kwargs)
      if key == 'base':
        made['hashes'] = _hashes(made['base'])
      if key == 'loop':
        made['batches'] = args[2]
      return made[key]

    patch.setattr(place, name, watched)

  with monkeypatch.context() as patch:
    watch(patch, frozen_base.OpenBase, 'load', 'base')
    watch(patch, train, 'Loop', 'loop')
    yield made


def _hashes(base):
  return {
    jax.tree_util.keystr(path): hashlib.sha256(
      np.asarray(leaf).tobytes()
    ).hexdigest()
    for path, leaf in jax.tree_util.tree_leaves_with_path(base.params)
  }


def test_only_the_table_changes(place, tmp_path, monkeypatch):
  cfg = place.load(
    tmp_path / 'run',
    data={'validation': (), 'test': ()},
    train={'num_steps': 6},
  )
  with _watched(monkeypatch) as made, compilations.counted() as compiled:
    train.train(cfg, stopping.StopRequest())
  loop = made['loop']

  assert len(made['hashes']) > 8
  assert _hashes(made['base']) == made['hashes']

  # optax has never seen the base.
  shapes = {leaf.shape for leaf in jax.tree.leaves(loop.state.opt_state)}
  assert shapes == {(), (tiny_run.ROWS, tiny_run.DIM)}
  saved, _ = checkpoints.Checkpoints(tmp_path / 'run', 2).restore(loop.state)
  assert {leaf.shape for leaf in jax.tree.leaves(saved)} == shapes

  # Each shape has been compiled once.
  with made['batches'].starting_at(0) as stream:
    shapes = [next(stream).batch.prefix.shape for _ in range(6)]
  assert len(set(shapes)) == 2
  assert compiled.count('jit(step)') == 2


def test_ways_to_compute_the_same_step(place, tmp_path):
  rows = [tiny_run.record(i) for i in range(60)]
  for i, row in enumerate(rows):  # Microbatches differ in target tokens.
    row['answers'] = ['b' * (1 + i % 2)]
  tiny_run.write(tmp_path / 'train.jsonl', rows)

  def table(name, data=(), **settings):
    cfg = place.load(
      tmp_path / name,
      data={
        'train': (str(tmp_path / 'train.jsonl'),),
        'validation': (),
        'test': (),
        'shapes': ((48, 32),),
        'token_cache': str(tmp_path / 'tokens'),
        # A batch has the same examples, however they are dealt into rows.
        'window_batches': 1,
        **dict(data),
      },
      optim={'warmup_steps': 1},
      train={'num_steps': 3, **settings},
    )
    train.train(cfg, stopping.StopRequest())
    return table_file.load(tmp_path / name / 'table.safetensors')[0]

  expected = table('whole')
  size = np.abs(expected).max()
  packed = {'examples_per_row': 2, 'shapes': ((96, 64),)}
  for name, data, settings in (
    ('accumulated', {}, {'accumulation_steps': 2}),
    ('remat', {}, {'remat': True}),
    ('packed', packed, {}),
    ('packed_accumulated', packed, {'accumulation_steps': 2, 'remat': True}),
    ('all_in_one', {'examples_per_row': 4, 'shapes': ((192, 128),)}, {}),
  ):
    np.testing.assert_allclose(
      table(name, data, **settings), expected, rtol=1e-5, atol=1e-5 * size
    )


def test_a_quantised_base(place, reference, tmp_path):
  """It is another run, whose table is one of the same base."""

  def load(**base):
    return place.load(
      tmp_path / 'run',
      base=base,
      data={'test': ()},
      optim={'learning_rate': 0.1, 'warmup_steps': 0},
      train={'num_steps': 6, 'validate_every': 1},
      eval={'conditions': ()},
    )

  summary = train.train(load(quantize='int8'), stopping.StopRequest())
  assert summary['quantize'] == 'int8'
  rows = tiny_run.rows(tmp_path / 'run')
  losses = [r['validation_loss'] for r in rows if 'loss' not in r]
  assert losses[-1] < losses[0] - 0.2
  _, metadata = table_file.load(tmp_path / 'run' / 'table.safetensors')
  assert metadata['quantize'] == 'int8'
  plain = tiny_run.summary(reference[0])
  assert plain['quantize'] == 'none'
  assert metadata['fingerprint'] == plain['base_fingerprint']
  for other in ('none', 'int4'):
    with pytest.raises(
      errors.UserError,
      match=f"config.base.quantize: 'int8' there, '{other}' now",
    ):
      train.train(load(quantize=other), stopping.StopRequest())


def test_every_position_can_be_trained(place, tmp_path):
  def run(position, shapes):
    cfg = place.load(
      tmp_path / position,
      virtual_tokens={'position': position},
      data={
        'test': (),
        'shapes': shapes,
        'token_cache': str(tmp_path / 'tokens'),
      },
      optim={'learning_rate': 0.1, 'warmup_steps': 0},
      train={'num_steps': 6, 'validate_every': 1},
    )
    train.train(cfg, stopping.StopRequest())
    return table_file.load(tmp_path / position / 'table.safetensors')

  both = ((48, 32),)
  tables = []
  shapes = {'first': ((1, 80),), 'middle': both, 'last': both}
  for position, own in shapes.items():
    table, metadata = run(position, own)
    assert metadata['position'] == position
    assert metadata['num_virtual_tokens'] == tiny_run.ROWS
    rows = tiny_run.rows(tmp_path / position)
    losses = [r['validation_loss'] for r in rows if 'loss' not in r]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.2
    tables.append(table)
  assert len({table.tobytes() for table in tables}) == 3
  # All have tokenised the same.
  assert len(list((tmp_path / 'tokens').glob('*/meta.json'))) == 1


def test_base_without_chat_template(place, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer_lib.Tokenizer, 'has_chat_template', False)
  with pytest.raises(errors.UserError, match=r'config\.eval\.conditions: '):
    train.train(place.load(tmp_path / 'run'), stopping.StopRequest())
  # Without that condition the same directory can be used.
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


def test_longer_than_the_base_was_trained_for(place, tmp_path):
  cfg = place.load(
    tmp_path / 'run', data={'max_prefix_tokens': 478, 'shapes': ()}
  )
  with pytest.raises(
    errors.UserError,
    match=r'config\.data\.max_prefix_tokens, .* 513 tokens, more than the 512',
  ):
    train.train(cfg, stopping.StopRequest())


def test_directory_of_other_data(place, tmp_path):
  run = tmp_path / 'run'
  data = tmp_path / 'data.jsonl'
  tiny_run.write(data, [tiny_run.record(i) for i in range(60)])
  cfg = place.load(run, data={'train': (str(data),)})
  run.mkdir()
  (run / 'data.json').write_text('{"train": "", "validation": "", "test": ""}')
  with pytest.raises(
    errors.UserError, match=r'other data:\n  config\.data\.'
  ) as e:
    train.train(cfg, stopping.StopRequest())
  assert 'config.data.train: 0 there, 1 now' in str(e.value)
  assert {path.name for path in run.iterdir()} == {'.lock', 'data.json'}


@pytest.mark.parametrize(
  'name',
  [
    'config.json',
    'data.json',
    'base.json',
    'summary.json',
    'untrained.json',
    'metrics.jsonl',
  ],
)
def test_damaged_file_of_a_run(place, reference, tmp_path, name):
  workdir = tmp_path / 'run'
  shutil.copytree(reference[0], workdir)
  for late in ('untrained.json', 'metrics.jsonl'):
    if name == late:
      (workdir / 'summary.json').unlink()
  path = workdir / name
  where = re.escape(f'{path}:1' if name == 'metrics.jsonl' else str(path))
  cfg = place.load(workdir)
  damages = {
    b'': 'not JSON',
    b'{': 'not JSON',
    b'\xff': 'not UTF-8',
    b'[]': r'expected an object, got \[\]',
    b'[' * 100_000: 'not JSON: nested too deeply',
    b'{"a":' * 70 + b'{}' + b'}' * 70: 'nested more than 64 deep',
  }
  if name.startswith(('untrained', 'metrics')):
    # These need the weights of the base, which takes a second each.
    damages = {b'\xff': 'not UTF-8'}
  for damage, problem in damages.items():
    path.write_bytes(damage + b'\n')
    before = {p: data for p, (_, data) in _tree(workdir).items()}
    with pytest.raises(errors.UserError, match=f'^{where}: {problem}.*; '):
      train.train(cfg, stopping.StopRequest())
    assert {p: data for p, (_, data) in _tree(workdir).items()} == before


def test_batch_that_devices_cannot_share(place, tmp_path, monkeypatch):
  monkeypatch.setattr(
    partitioning,
    'make_mesh',
    lambda _: types.SimpleNamespace(shape={'data': 4, 'fsdp': 3, 'tensor': 1}),
  )
  with pytest.raises(errors.UserError, match=r'no multiple of the 12 devices'):
    train.train(place.load(tmp_path / 'run'), stopping.StopRequest())
