"""Tests of vtokens.run.tracking."""

import dataclasses
import json
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from vtokens import config
from vtokens.host import errors
from vtokens.run import loop, tracking


def test_metrics_round_trip(tmp_path):
  path = tmp_path / 'new' / 'metrics.jsonl'
  assert tracking.read_metrics(path) == []
  writer = tracking.MetricsWriter(path, 0, 0)
  writer.write(1, {'loss': 1 / 3})
  # Each line can be read while the run goes on.
  assert tracking.read_metrics(path) == [{'step': 1, 'loss': 1 / 3}]
  writer.write(2, {'loss': 0.5})
  writer.write(2, {'validation_loss': 0.25})
  writer.close()
  assert tracking.read_metrics(path) == [
    {'step': 1, 'loss': 1 / 3},
    {'step': 2, 'loss': 0.5},
    {'step': 2, 'validation_loss': 0.25},
  ]


@pytest.mark.parametrize(
  'step, validated, tail, kept',
  [
    (0, 0, '', []),
    (2, 2, '', [1, 2, -2]),
    (3, 2, '', [1, 2, -2, 3]),
    (9, 9, '', [1, 2, -2, 3]),
    # The checkpoint of step 2 is from before its validation.
    (2, 1, '', [1, 2]),
    # Killed in the middle of a line, and before its line break.
    (9, 9, '{"step": 4, "lo', [1, 2, -2, 3]),
    (9, 9, '{"step": 4, "loss": 4}', [1, 2, -2, 3, 4]),
  ],
)
def test_metrics_go_on_after_a_step(tmp_path, step, validated, tail, kept):
  path = tmp_path / 'metrics.jsonl'
  rows = [
    {'step': 1, 'loss': 1},
    {'step': 2, 'loss': 2},
    {'step': 2, 'validation_loss': -2},
    {'step': 3, 'loss': 3},
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)
  writer = tracking.MetricsWriter(path, step, validated)
  writer.write(99, {'loss': 99})
  writer.close()
  values = [
    row.get('loss', row.get('validation_loss'))
    for row in tracking.read_metrics(path)
  ]
  assert values == [*kept, 99]
  assert path.read_text().endswith('\n')


def _events(directory):
  """(step, tag, value) of all event files, in the order of their names."""
  found = []
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      # Length, its checksum, the event, its checksum.
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      found += [
        (event.step, value.tag, value.simple_value)
        for value in event.summary.value
      ]
  return found


def _open(tmp_path, settings, step=0):
  return tracking.open_tracker(str(tmp_path), settings, {'seed': 1}, step, step)


def test_tensorboard(tmp_path):
  tracker = _open(tmp_path, config.Tracking())
  tracker.write(1, {'loss': 0.5, 'grad_norm': 2.0})
  tracker.write(1, {'validation_loss': 0.25})
  tracker.close()
  tracker = _open(tmp_path, config.Tracking(), step=1)
  tracker.write(2, {'loss': 0.125})
  tracker.close()
  assert _events(tmp_path / 'tensorboard') == [
    (1, 'train/loss', 0.5),
    (1, 'train/grad_norm', 2.0),
    (1, 'validation/loss', 0.25),
    (2, 'train/loss', 0.125),
  ]
  assert len(tracking.read_metrics(tmp_path / 'metrics.jsonl')) == 3


def test_only_the_lines(tmp_path):
  _open(tmp_path, config.Tracking(tensorboard=False)).close()
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_wandb(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  settings = config.Tracking(tensorboard=False, wandb_project='vtokens')
  for step in (0, 1):
    tracker = _open(tmp_path, settings, step)
    tracker.write(step + 1, {'loss': 0.5})
    tracker.write(step + 1, {'validation_loss': 0.25})
    tracker.close()
  logs = list((tmp_path / 'wandb').glob('offline-run-*/run-*.wandb'))
  # A restart goes on with the same run.
  assert len({path.name for path in logs}) == 1
  text = b''.join(path.read_bytes() for path in logs)
  for part in (b'train/loss', b'validation/loss', b'seed'):
    assert part in text


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'wandb', None)
  with pytest.raises(errors.UserError, match='wandb is not installed'):
    _open(tmp_path, config.Tracking(wandb_project='x'))


@dataclasses.dataclass
class _Steps:
  """As much of a loop as a profile looks at."""

  step: int


def _done(step):
  return loop.DispatchedStep(step, None, {'loss': jnp.ones(3) * step}, 0.0)


def test_profile(tmp_path, capsys):
  profile = tracking.Profile(str(tmp_path / 'profile'), (2, 3))
  for step in range(1, 6):
    profile.before_step(_Steps(step - 1))
    profile.after_step(_Steps(step), _done(step))
  assert list(tmp_path.rglob('*.xplane.pb'))
  assert 'trace of steps up to 3' in capsys.readouterr().out


def test_profile_of_a_run_that_is_stopped(tmp_path):
  profile = tracking.Profile(str(tmp_path), (1, 9))
  profile.before_step(_Steps(0))
  profile.close()
  profile.close()
  assert list(tmp_path.rglob('*.xplane.pb'))


def test_no_profile(tmp_path):
  profile = tracking.Profile(str(tmp_path), (0, 0))
  profile.before_step(_Steps(0))
  profile.after_step(_Steps(1), _done(1))
  profile.close()
  assert not list(tmp_path.iterdir())
