"""Tests of vtokens.sweep on a tiny random Llama."""

import dataclasses
import json
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_run
from jax.experimental.compilation_cache import compilation_cache

from vtokens import config, sweep, train
from vtokens.host import errors, stopping
from vtokens.models import frozen_base
from vtokens.models.tokenizers import tokenizer as tokenizer_lib
from vtokens.run.workdir import RunDir
from vtokens.settings import config_file
from vtokens.sweeping import candidates as candidates_lib
from vtokens.sweeping.sweep_directory import SweepDirectory

_OPTIONS = sweep.Options(
  over=('optim.learning_rate=0.5,1,2', 'virtual_tokens.init=passages'),
)
_CHANGES = {
  'virtual_tokens': {'num_virtual_tokens': 2},
  'data': {'shapes': ((48, 32),), 'test': ()},
  'optim': {'warmup_steps': 1},
  'train': {'num_steps': 3, 'validate_every': 1, 'checkpoint_every': 10},
  'eval': {'num_active': (2,), 'conditions': ()},
  'tracking': {'tensorboard': False},
}


class _StopAt(stopping.StopRequest):
  """A signal that comes when so many pieces of work have begun."""

  def __init__(self, number):
    super().__init__()
    self._left = number

  def _count(self):
    self._left -= 1
    if self._left <= 0:
      self.signal = signal.SIGTERM

  def run(self, function):
    self._count()
    self.check()
    return function()

  def check_together(self):
    self._count()
    super().check_together()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Its programs are compiled once, as those of `tiny_run.Place.run`."""
  place = tiny_run.make_place(tmp_path_factory.mktemp('sweep'))
  settings = {
    'jax_compilation_cache_dir': str(place.root / 'jax_cache'),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield place
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def _config(place, workdir):
  return place.load(workdir, **_CHANGES)


def _sweep(place, workdir, options=_OPTIONS, stop=None):
  cfg = _config(place, workdir)
  return sweep.sweep(cfg, options, stop or stopping.StopRequest())


def _results(workdir):
  """results.json without what depends on the directory."""
  text = (workdir / 'results.json').read_text()
  return json.loads(text.replace(str(workdir), ''))


@pytest.fixture(scope='module')
def whole(place):
  """An uninterrupted sweep."""
  workdir = place.root / 'whole'
  _sweep(place, workdir)
  return workdir


def test_results(whole):
  found = _results(whole)
  assert [(r['step'], r['candidates']) for r in found['rungs']] == [
    (1, 3),
    (3, 1),
  ]
  losses = {}
  for one in found['candidates']:
    rows = tiny_run.rows(whole / 'candidates' / one['name'])
    validations = {row['step']: row for row in rows if 'validation_loss' in row}
    # No further than its rung.
    assert [s['step'] for s in one['scores']] == [
      step for step in (1, 3) if step in validations
    ]
    for score in one['scores']:
      best = min(
        (row for row in validations.values() if row['step'] <= score['step']),
        key=lambda row: row['validation_loss'],
      )
      assert score['loss'] == best['validation_loss']
      assert score['best_step'] == best['step']
      assert score['em'] == best['validation_em']
    losses[one['name']] = one['scores'][0]['loss']
    assert one['diverged'] == ''
  assert len(set(losses.values())) == 3
  best = min(losses, key=losses.get)
  assert found['winner']['name'] == best
  assert [o['name'] for o in found['candidates'] if len(o['scores']) > 1] == [
    best
  ]
  lines = (whole / 'results.md').read_text().splitlines()
  cells = [line.split(' | ') for line in lines if line.startswith('| ')]
  by_loss = sorted(losses, key=losses.get)
  assert [row[0].strip('| ') for row in cells[2:]] == by_loss
  assert [row[-1].strip('| ') for row in cells[2:]] == [
    '2 of 2',
    '1 of 2',
    '1 of 2',
  ]


def test_the_best_is_an_ordinary_run(place, whole):
  """Also bit for bit the table of `vtokens train` with its config."""
  found = _results(whole)['winner']
  cfg = config_file.load(str(whole / 'best.py'), config.Config)
  finished = RunDir(cfg.workdir).read('--workdir', scored=True)
  assert finished.sha256 == found['table_sha256']
  assert cfg.workdir == str(whole / 'candidates' / found['name'])
  cfg.workdir = str(place.root / 'again')
  config.validate(cfg)
  again = train.train(cfg, stopping.StopRequest())
  assert again['table_sha256'] == found['table_sha256']
  # What vtokens train says about the run in place.
  cfg.workdir = str(whole / 'candidates' / found['name'])
  assert (
    train.train(cfg, stopping.StopRequest())['table_sha256']
    == (found['table_sha256'])
  )


def test_stopped_at_many_points_ends_the_same(place, whole, monkeypatch):
  loads = []
  load = frozen_base.OpenBase.load
  monkeypatch.setattr(
    frozen_base.OpenBase,
    'load',
    lambda self, mesh: loads.append(1) or load(self, mesh),
  )
  workdir = place.root / 'stopped'
  stops = []
  for number in range(3, 40, 4):
    loads.clear()
    try:
      _sweep(place, workdir, stop=_StopAt(number))
    except stopping.Stopped:
      stops.append((workdir / 'results.json').exists())
      assert len(loads) <= 1
      continue
    break
  # Before any candidate was at a rung, and later.
  assert stops[0] is False and stops[-1] is True
  assert len(stops) >= 4
  assert len(loads) <= 1
  assert _results(workdir) == _results(whole)
  # A sweep that has ended shows its result again, and changes nothing.
  loads.clear()
  _sweep(place, workdir)
  assert not loads
  assert _results(workdir) == _results(whole)
  # Without its file, the runs still know.
  (workdir / 'results.json').unlink()
  _sweep(place, workdir)
  assert _results(workdir) == _results(whole)


@pytest.mark.parametrize(
  'options, changes, parts',
  [
    (
      {'over': ('optim.learning_rate=0.5,1,3', _OPTIONS.over[1])},
      {},
      ['--over.optim.learning_rate: [0.5, 1.0, 2.0] there'],
    ),
    ({'eta': 2}, {}, ['--eta: 3 there, 2 now']),
    ({'by': 'em'}, {}, ["--by: 'loss' there, 'em' now"]),
    ({}, {'optim': {'clip_norm': 0.5}}, ['config.optim.clip_norm: 1.0 there']),
  ],
)
def test_directory_of_another_sweep(place, whole, options, changes, parts):
  before = {p: p.read_bytes() for p in whole.rglob('*') if p.is_file()}
  cfg = _config(place, whole)
  for section, fields in changes.items():
    for name, value in fields.items():
      setattr(getattr(cfg, section), name, value)
  with pytest.raises(errors.UserError) as caught:
    sweep.sweep(
      cfg,
      dataclasses.replace(_OPTIONS, **options),
      stopping.StopRequest(),
    )
  message = str(caught.value)
  assert f'{whole} holds another sweep' in message
  # One difference, and the advice.
  assert len(message.splitlines()) == 3
  for part in parts:
    assert part in message
  assert before == {p: p.read_bytes() for p in whole.rglob('*') if p.is_file()}


def test_directory_of_something_else(place, whole, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(errors.UserError, match=r'holds no sweep \(config.json\)'):
    _sweep(place, tmp_path)
  assert [path.name for path in tmp_path.iterdir() if path.name[0] != '.'] == [
    'config.json'
  ]


def test_bad_values_leave_the_directory_free(place, tmp_path):
  bad = dataclasses.replace(
    _OPTIONS,
    over=('virtual_tokens.init=table', 'virtual_tokens.init_path=none,none2'),
  )
  with pytest.raises(errors.UserError) as caught:
    _sweep(place, tmp_path / 'x', bad)
  for part in ('candidate 1 (', 'candidate 2 (', 'none2'):
    assert part in str(caught.value)
  with pytest.raises(stopping.Stopped):
    _sweep(place, tmp_path / 'x', stop=_StopAt(6))


def test_results_without_their_runs_are_not_believed(place, whole, tmp_path):
  """Another sweep may take the place of one whose runs are gone."""
  shutil.copytree(whole, tmp_path / 'copy')
  shutil.rmtree(tmp_path / 'copy' / 'candidates')
  candidates, _ = candidates_lib.make(
    _config(place, whole), candidates_lib.parse(_OPTIONS.over)
  )
  for path, has_runs in ((whole, True), (tmp_path / 'copy', False)):
    records = SweepDirectory(path, candidates).read()
    assert any(record.scores for record in records.values()) == has_runs


def test_damaged_results(place, whole, tmp_path):
  shutil.copytree(whole, tmp_path / 'copy')
  (tmp_path / 'copy' / 'results.json').write_text('{"candidates": [{}]}')
  with pytest.raises(errors.UserError, match=r'results\.json.*delete it'):
    _sweep(place, tmp_path / 'copy')


def test_candidates_that_diverge(place, tmp_path):
  """A character whose embedding is infinite, in two prompts."""
  base = tmp_path / 'base'
  shutil.copytree(place.root / 'base1', base)
  weights = safetensors.numpy.load_file(base / 'model.safetensors')
  (bad_id,) = tokenizer_lib.load_tokenizer(base).encode('~')
  weights['model.embed_tokens.weight'][bad_id, 0] = np.inf
  safetensors.numpy.save_file(
    weights, base / 'model.safetensors', metadata={'format': 'pt'}
  )

  def run(name, *prompts):
    cfg = _config(place, tmp_path / name)
    cfg.base.path = str(base)
    cfg.train.num_steps = 2
    over = 'templates.prompt=' + ','.join(f'{p} {{question}}' for p in prompts)
    options = sweep.Options((over,), eta=2)
    return sweep.sweep(cfg, options, stopping.StopRequest())

  run('one', 'Q~', 'Q')
  found = _results(tmp_path / 'one')
  assert found['winner']['name'] == '2'
  bad, good = found['candidates']
  assert 'loss nan' in bad['diverged'] and bad['scores'] == []
  assert good['diverged'] == '' and len(good['scores']) == 2
  assert '0 of 2, diverged' in (tmp_path / 'one' / 'results.md').read_text()

  with pytest.raises(errors.UserError, match=r'no candidate came to step 1'):
    run('all', 'Q~', 'R~')


def test_a_mistake_in_the_command(place, tmp_path):
  done = place.run(
    [
      *(sys.executable, '-m', 'vtokens', 'sweep', '--config'),
      *(place.config_file, f'--config.workdir={tmp_path / "x"}'),
      *('--over=optim.lr=1', '--over=virtual_tokens.init=text,vocab'),
    ]
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: config.optim.lr: no such field')
  assert not (tmp_path / 'x').exists()


@pytest.mark.exhaustive
def test_killed_at_random_ends_the_same(place, tmp_path):
  def command(workdir):
    return [
      *(sys.executable, '-m', 'vtokens.sweep', '--config', place.config_file),
      *(f'--config.workdir={workdir}', '--config.data.test=()'),
      *('--config.train.num_steps=4', '--config.train.validate_every=1'),
      '--config.eval.conditions=()',
      '--over=optim.learning_rate=0.5,1',
    ]

  done = place.run(command(tmp_path / 'reference'))
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / 'killed'

  def steps():
    return sum(map(tiny_run.last_step, workdir.glob('candidates/*')))

  for number in (1, 2, 4):
    place.signal_when(
      lambda number=number: steps() >= number,
      signal.SIGKILL,
      command(workdir),
    )
    assert not (workdir / 'results.json').exists() or (
      _results(workdir)['winner'] is None
    )
  done = place.run(command(workdir))
  assert done.returncode == 0, done.stderr
  assert _results(workdir) == _results(tmp_path / 'reference')


@pytest.mark.slow
def test_two_processes(place, whole, tmp_path):
  """They agree on the candidates, and one of them writes."""
  launch = tiny_run.ROOT / 'launch' / 'local_multiprocess.sh'
  sections = [
    f'--config.{section}.{name}={value}'
    for section, fields in _CHANGES.items()
    for name, value in fields.items()
  ]
  command = [
    *('bash', str(launch), '--processes', '2', '--devices', '1', '--'),
    *(sys.executable, '-m', 'vtokens.sweep', '--config', place.config_file),
    *(f'--config.workdir={tmp_path / "two"}', *sections),
    *(f'--over={text}' for text in _OPTIONS.over),
  ]
  done = place.run(command)
  assert done.returncode == 0, done.stdout + done.stderr
  found, expected = _results(tmp_path / 'two'), _results(whole)
  assert found['winner']['name'] == expected['winner']['name']
  for one, other in zip(
    found['candidates'], expected['candidates'], strict=True
  ):
    assert [s['step'] for s in one['scores']] == [
      s['step'] for s in other['scores']
    ]
    for a, b in zip(one['scores'], other['scores'], strict=True):
      assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)
