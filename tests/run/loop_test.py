"""Tests of vtokens.run.loop, on a train step that a person can follow."""

import contextlib
import dataclasses
import itertools
import math
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens import config
from vtokens.data import batch as batch_lib
from vtokens.data import pipeline
from vtokens.host import errors, stopping, writers
from vtokens.method import steps
from vtokens.run import checkpoints, loop, loop_hooks, step_log, tracking
from vtokens.scoring import metrics


def _train_step(state, batch):
  """Adds the batch's number to the table; its loss is that number."""
  number = jnp.asarray(batch.prefix)[0, 0].astype(jnp.float32)
  state = state.replace(trained=state.trained + number, step=state.step + 1)
  return state, {'loss': number, 'grad_norm': number, 'tokens': jnp.ones(())}


class _Batches:
  """Batch i holds i + 1, and cuts and drops one passage."""

  batch_rows = 1

  @contextlib.contextmanager
  def starting_at(self, step):
    yield (self._batch(i) for i in itertools.count(step))

  def _batch(self, step):
    row = np.full((1, 1), step + 1, np.int32)
    batch = batch_lib.Batch(
      prefix=row,
      prefix_positions=row,
      prefix_segments=None,
      suffix=row,
      suffix_positions=row,
      suffix_segments=None,
      suffix_parents=None,
      targets=row,
      target_index=row,
    )
    return pipeline.HostBatch(
      batch,
      (f'record{step + 1}',),
      lengths=((2, 2, 1, 1),),
      real_tokens=3,
      computed_tokens=4,
      passages_dropped=1,
      passages_cut=1,
    )


class _Validate:
  """Validation losses from a dict by step; stops when it is told to."""

  def __init__(self, losses, stop, stop_in):
    self._losses = losses
    self._stop = stop
    self._stop_in = stop_in
    self.steps = []

  def __call__(self, table):
    step = self._step_of(float(table[0, 0]))
    self.steps.append(step)
    if step in self._stop_in:
      self._stop.signal = signal.SIGTERM
      self._stop.check()
    return loop_hooks.ValidationResult(
      self._losses.get(step, 1.0), metrics.Scores(100.0, 100.0, 1), 1
    )

  def _step_of(self, value):
    # The table holds 1 + 2 + ... + step.
    return round((math.sqrt(8 * value + 1) - 1) / 2)


@dataclasses.dataclass
class _Run:
  loop: loop.Loop
  num_steps: int
  validate: _Validate
  stop: stopping.StopRequest
  log: step_log.StepLog

  def run(self):
    self.loop.run(self.num_steps)
    return self

  @property
  def table(self):
    return float(self.loop.state.trained[0, 0])


def _make(
  directory,
  *,
  train_step=_train_step,
  validation_losses=None,
  stop_in=(),
  validates=True,
  more_hooks=(),
  **settings,
):
  settings = config.Train(
    **{
      'num_steps': 7,
      'validate_every': 3,
      'checkpoint_every': 2,
      **settings,
    }
  )
  stop = stopping.StopRequest()
  validate = _Validate(validation_losses or {}, stop, stop_in)
  saved = checkpoints.Checkpoints(directory, 2)
  state, progress = loop_hooks.resume(
    saved,
    jax.device_put(
      steps.TrainState(
        trained=jnp.zeros((1, 1)), opt_state=(), step=jnp.int32(0)
      )
    ),
  )
  step = int(state.step)
  cost = step_log.StepCost(
    flops=lambda lengths, teacher: 6.0 * sum(map(sum, lengths)),
    peak_flops=None,
    learning_rates=step_log.learning_rates(
      lambda step: 0.5, settings.num_steps
    ),
  )
  log = step_log.StepLog(
    settings,
    cost,
    tracking.MetricsWriter(
      directory / 'metrics.jsonl', step, progress.validated_step
    ),
    progress,
    step,
  )
  hooks = [log]
  if validates:
    hooks.append(
      loop_hooks.Validation(
        validate, settings.validate_every, log, progress, saved
      )
    )
  hooks += [
    loop_hooks.Saving(saved, settings.checkpoint_every, log, progress),
    loop_hooks.StopIfAsked(stop),
    *more_hooks,
  ]
  return _Run(
    loop.Loop(train_step, state, _Batches(), hooks),
    settings.num_steps,
    validate,
    stop,
    log,
  )


def _saved(directory, kind='checkpoints'):
  return sorted(int(path.name) for path in (directory / kind).iterdir())


def _rows(directory):
  """What each line of the metrics is, in order."""
  rows = tracking.read_metrics(directory / 'metrics.jsonl')
  return [
    (row['step'], 'validation' if 'validation_loss' in row else 'loss')
    for row in rows
  ]


_ALL_ROWS = [
  (1, 'loss'),
  (2, 'loss'),
  (3, 'loss'),
  (3, 'validation'),
  (4, 'loss'),
  (5, 'loss'),
  (6, 'loss'),
  (6, 'validation'),
  (7, 'loss'),
  (7, 'validation'),
]


def test_a_whole_run(tmp_path, capsys):
  run = _make(tmp_path, validation_losses={3: 2.0, 6: 0.5, 7: 0.7})
  run.run()
  assert run.loop.step == 7
  assert run.table == 1 + 2 + 3 + 4 + 5 + 6 + 7
  assert _rows(tmp_path) == _ALL_ROWS
  assert _saved(tmp_path) == [6, 7]
  assert _saved(tmp_path, 'best') == [3, 6]
  assert run.validate.steps == [3, 6, 7]
  rows = tracking.read_metrics(tmp_path / 'metrics.jsonl')
  rate = rows[0].pop('examples_per_second')
  seconds = [
    rows[0].pop(f'{name}_seconds') for name in ('data', 'device', 'host')
  ]
  assert min(seconds) >= 0
  # One example of four tokens; see `_make`.
  assert sum(seconds) == pytest.approx(1 / rate)
  assert rows[0].pop('tflops_per_second') == pytest.approx(36e-12 * rate)
  assert rows[0] == {
    'step': 1,
    'loss': 1.0,
    'grad_norm': 1.0,
    'tokens': 1.0,
    'learning_rate': 0.5,
    'padding': 0.25,
    'passages_dropped': 1,
    'passages_cut': 1,
  }
  assert rows[3] == {
    'step': 3,
    'validation_loss': 2.0,
    'validation_em': 100.0,
    'validation_f1': 100.0,
  }
  captured = capsys.readouterr()
  assert 'step 6: validation loss 0.500, EM 100.0, F1 100.0' in captured.out
  assert '7 dropped, 7 cut' in captured.out
  # Progress: count, time left, loss, rate.
  assert '7/7 [' in captured.err
  assert 'loss 7.000, lr 5.0e-01' in captured.err
  assert 'examples/s' in captured.err


def test_without_validation(tmp_path):
  run = _make(tmp_path, validates=False)
  run.run()
  assert _rows(tmp_path) == [(i, 'loss') for i in range(1, 8)]
  assert _saved(tmp_path, 'best') == []


def test_log_every(tmp_path):
  _make(tmp_path, validates=False, log_every=3).run()
  assert _rows(tmp_path) == [(3, 'loss'), (6, 'loss')]


class _KilledError(Exception):
  pass


def _killed_in(step):
  """A train step in which the process dies."""

  def train_step(state, batch):
    if int(batch.prefix[0, 0]) == step:
      raise _KilledError
    return _train_step(state, batch)

  return train_step


@pytest.mark.parametrize('killed', [(1,), (2,), (3,), (4, 5), (6, 7, 7)])
def test_killed_and_continued(tmp_path, killed):
  for step in killed:
    with pytest.raises(_KilledError):
      _make(tmp_path, train_step=_killed_in(step)).run()
  run = _make(tmp_path)
  run.run()
  assert run.table == 28
  assert _rows(tmp_path) == _ALL_ROWS
  last = tracking.read_metrics(tmp_path / 'metrics.jsonl')[-2]
  assert (last['passages_dropped'], last['passages_cut']) == (7, 7)


def test_a_finished_run_goes_no_further(tmp_path):
  _make(tmp_path).run()
  run = _make(tmp_path)
  run.run()
  assert run.validate.steps == []
  assert run.table == 28
  assert _rows(tmp_path) == _ALL_ROWS


def test_a_signal_saves_the_step(tmp_path):
  def train_step(state, batch):
    if int(batch.prefix[0, 0]) == 5:
      first.stop.signal = signal.SIGINT
    return _train_step(state, batch)

  first = _make(tmp_path, train_step=train_step)
  with pytest.raises(stopping.Stopped, match='SIGINT'):
    first.run()
  assert _saved(tmp_path)[-1] == 5
  assert _rows(tmp_path)[-1] == (5, 'loss')
  second = _make(tmp_path)
  assert second.loop.step == 5
  second.run()
  assert second.table == 28
  assert _rows(tmp_path) == _ALL_ROWS


def test_a_hook_that_stops_before_a_step(tmp_path):
  class Stops(loop.Hook):
    def before_step(self, loop):
      if loop.step == 5:
        raise stopping.Stopped(signal.SIGTERM, agreed=True)

  first = _make(tmp_path, more_hooks=[Stops()])
  with pytest.raises(stopping.Stopped):
    first.run()
  assert _saved(tmp_path)[-1] == 5
  assert _make(tmp_path).run().table == 28
  assert _rows(tmp_path) == _ALL_ROWS


@pytest.mark.parametrize('step', [3, 6, 7])
def test_a_signal_during_validation(tmp_path, step):
  with pytest.raises(stopping.Stopped):
    _make(tmp_path, stop_in=[step]).run()
  assert _saved(tmp_path)[-1] == step
  # Done on restart; if killed after that, once more, but reported once.
  if step < 7:
    with pytest.raises(_KilledError):
      _make(tmp_path, train_step=_killed_in(step + 1)).run()
  run = _make(tmp_path)
  run.run()
  assert run.validate.steps[0] == step
  assert run.table == 28
  assert _rows(tmp_path) == _ALL_ROWS


def test_the_best_is_remembered(tmp_path):
  losses = {3: 0.5, 6: 0.9, 7: 0.6}
  with pytest.raises(_KilledError):
    _make(tmp_path, train_step=_killed_in(5), validation_losses=losses).run()
  _make(tmp_path, validation_losses=losses).run()
  assert _saved(tmp_path, 'best') == [3]


def test_killed_between_a_best_one_and_its_manifest(tmp_path, monkeypatch):
  """Before the first latest one: the best must not be lost."""
  losses = {3: 0.5, 6: 0.9, 7: 0.6}

  write_json = writers.write_json

  def killed(path, value):
    if path.name == 'manifest.json':
      raise _KilledError
    write_json(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(writers, 'write_json', killed)
    with pytest.raises(_KilledError):
      _make(tmp_path, validation_losses=losses, checkpoint_every=10).run()
  assert _saved(tmp_path, 'best') == [3]
  assert _saved(tmp_path) == []
  run = _make(tmp_path, validation_losses=losses, checkpoint_every=10)
  run.run()
  assert _saved(tmp_path, 'best') == [3]
  best, metadata = checkpoints.Checkpoints(tmp_path, 2).restore_best(
    run.loop.state
  )
  assert metadata['validation_loss'] == 0.5
  assert float(best.trained[0, 0]) == 1 + 2 + 3


def test_a_best_one_counts_without_a_latest_one(tmp_path):
  losses = {3: 0.9, 6: 0.5, 7: 0.6}
  with pytest.raises(_KilledError):
    _make(
      tmp_path,
      train_step=_killed_in(7),
      validation_losses=losses,
      checkpoint_every=10,
    ).run()
  assert _saved(tmp_path, 'best') == [3, 6]
  run = _make(tmp_path, validation_losses=losses, checkpoint_every=10)
  run.run()
  best = checkpoints.Checkpoints(tmp_path, 2).restore_best(run.loop.state)
  assert best[1]['step'] == 6


def test_time_adds_up(tmp_path, monkeypatch):
  now = iter(range(0, 10_000, 10))
  monkeypatch.setattr(time, 'monotonic', lambda: float(next(now)))
  with pytest.raises(_KilledError):
    _make(tmp_path, train_step=_killed_in(4)).run()
  run = _make(tmp_path)
  before = run.log.train_seconds()
  assert before > 10
  run.run()
  assert run.log.train_seconds() > before + 10


@pytest.mark.parametrize('key', ['loss', 'grad_norm'])
@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('step, last_good', [(1, None), (4, 2), (5, 4), (7, 6)])
def test_loss_that_is_not_finite(tmp_path, key, bad, step, last_good):
  def train_step(state, batch):
    state, values = _train_step(state, batch)
    if int(batch.prefix[0, 0]) == step:
      values[key] = jnp.float32(bad)
      state = state.replace(trained=state.trained * jnp.nan)
    return state, values

  run = _make(tmp_path, train_step=train_step, validates=False)
  with pytest.raises(errors.UserError) as e:
    run.run()
  assert f'at step {step}; its examples: record{step}. ' in str(e.value)
  assert _rows(tmp_path) == [(i, 'loss') for i in range(1, step)]
  saved = _saved(tmp_path)
  assert (saved[-1] if saved else None) == last_good


def test_table_that_an_update_broke(tmp_path):
  def train_step(state, batch):
    state, values = _train_step(state, batch)
    if int(batch.prefix[0, 0]) == 4:
      state = state.replace(trained=state.trained + jnp.inf)
    return state, values

  run = _make(tmp_path, train_step=train_step, validates=False)
  with pytest.raises(errors.UserError, match='not finite after step 4'):
    run.run()
  assert _saved(tmp_path) == [2]


def test_validation_loss_that_is_not_finite(tmp_path):
  run = _make(tmp_path, validation_losses={6: math.nan})
  with pytest.raises(
    errors.UserError, match='validation loss nan after step 6'
  ):
    run.run()
  assert _saved(tmp_path) == [2, 4]
  assert _saved(tmp_path, 'best') == [3]


def test_reports_one_step_late(tmp_path):
  """A step's loss is read only once the next step has been dispatched."""
  events = []

  class Late:
    def __init__(self, step):
      self._step = step

    def __float__(self):
      events.append(f'read {self._step}')
      return 1.0

  def train_step(state, batch):
    step = int(batch.prefix[0, 0])
    events.append(f'dispatched {step}')
    state, values = _train_step(state, batch)
    return state, {**values, 'loss': Late(step)}

  _make(
    tmp_path, train_step=train_step, validates=False, checkpoint_every=100
  ).run()
  expected = ['dispatched 1']
  for step in range(2, 8):
    expected += [f'dispatched {step}', f'read {step - 1}']
  assert events == [*expected, 'read 7']
