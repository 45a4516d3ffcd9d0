"""Tests of vtokens.run.checkpoints."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import device_programs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vtokens import config
from vtokens.devices import partitioning
from vtokens.host import errors, paths, writers
from vtokens.method import optim, steps
from vtokens.run import checkpoints

_ROOT = pathlib.Path(__file__).parents[2]


def _state(step, value=0.0):
  """A state in which every leaf has a value of its own."""
  optimizer = optim.make_optimizer(config.Optim(), 200)
  table = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7 + value
  opt_state = jax.tree.map(
    lambda x: x + jnp.asarray(step + 3).astype(x.dtype), optimizer.init(table)
  )
  return steps.TrainState(
    trained=table, opt_state=opt_state, step=jnp.int32(step)
  )


def _assert_equal(got, expected):
  """Same structure, dtypes and bits."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got),
    jax.tree.leaves(expected),
    strict=True,
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), path
    assert a.tobytes() == b.tobytes(), path


def _saved(directory):
  return sorted(path.name for path in directory.iterdir())


def test_nothing_saved(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  assert saved.restore(_state(0)) is None
  assert saved.restore_best(_state(0)) is None


def test_round_trip_in_another_process_of_the_run(tmp_path):
  state = _state(7, value=1 / 3)
  table = np.array(state.trained)
  table[0] = [np.float32(1e-45), -0.0, 3.4e38, 1 / 3]  # Denormal, sign, large.
  state = state.replace(trained=jnp.asarray(table))
  first = checkpoints.Checkpoints(tmp_path, 2)
  first.save(state, {'step': 7, 'train_seconds': 1.5, 'name': 'ä'})
  first.close()
  second = checkpoints.Checkpoints(tmp_path, 2)
  restored, metadata = second.restore(_state(0))
  _assert_equal(restored, state)
  assert metadata == {'step': 7, 'train_seconds': 1.5, 'name': 'ä'}
  assert isinstance(restored, steps.TrainState)
  # optax finds its own types again, or it could not go on.
  optimizer = optim.make_optimizer(config.Optim(), 200)
  optimizer.update(restored.trained, restored.opt_state, restored.trained)


def test_keeps_the_latest(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  for step in (2, 4, 6):
    saved.save(_state(step), {'step': step})
  saved.close()
  assert _saved(tmp_path / 'checkpoints') == ['4', '6']
  restored, metadata = saved.restore(_state(0))
  assert metadata == {'step': 6}
  _assert_equal(restored, _state(6))


def test_saving_a_step_again_changes_nothing(tmp_path):
  # After a stop just at a checkpoint, and after a finished run.
  saved = checkpoints.Checkpoints(tmp_path, 2)
  saved.save(_state(2), {'step': 2})
  saved.save(_state(2, value=1.0), {'step': 2, 'again': True})
  assert saved.restore(_state(0))[1] == {'step': 2}


def test_best_is_replaced_and_outlives_the_latest(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 1)
  saved.save_best(_state(2), {'step': 2, 'validation_loss': 3.0})
  for step in (2, 4, 6):
    saved.save(_state(step), {'step': step})
  assert saved.restore_best(_state(0))[1]['step'] == 2
  saved.save_best(_state(6), {'step': 6, 'validation_loss': 1.0})
  assert _saved(tmp_path / 'best') == ['2', '6']
  best, metadata = saved.restore_best(_state(0))
  assert metadata == {'step': 6, 'validation_loss': 1.0}
  _assert_equal(best, _state(6))


@pytest.mark.parametrize('save', ['save', 'save_best'])
def test_a_kill_before_the_manifest_leaves_the_one_before(
  save, tmp_path, monkeypatch
):
  """Though Orbax has deleted what is too many by then."""
  saved = checkpoints.Checkpoints(tmp_path, 1)
  getattr(saved, save)(_state(2), {'step': 2})

  def killed(*_):
    raise SystemExit

  monkeypatch.setattr(writers, 'write_json', killed)
  with pytest.raises(SystemExit):
    getattr(saved, save)(_state(4), {'step': 4})
  again = checkpoints.Checkpoints(tmp_path, 1)
  restore = again.restore if save == 'save' else again.restore_best
  assert restore(_state(0))[1] == {'step': 2}


def test_none_is_left(tmp_path, capsys):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  saved.save(_state(2), {'step': 2})
  (tmp_path / 'checkpoints' / '2' / 'manifest.json').unlink()
  assert checkpoints.Checkpoints(tmp_path, 2).restore(_state(0)) is None
  directory = tmp_path / 'checkpoints'
  said = capsys.readouterr().out
  assert said == f'{directory}/2: cut off by a kill; removed\n'
  assert _saved(directory) == []


@pytest.mark.parametrize('save', ['save', 'save_best'])
def test_a_step_that_a_kill_cut_off_is_saved_again(save, tmp_path, monkeypatch):
  """Between Orbax's last file and the manifest."""

  def killed(*_):
    raise SystemExit

  with monkeypatch.context() as patch:
    patch.setattr(writers, 'write_json', killed)
    with pytest.raises(SystemExit):
      getattr(checkpoints.Checkpoints(tmp_path, 2), save)(_state(4), {'of': 1})
  again = checkpoints.Checkpoints(tmp_path, 2)
  restore = again.restore if save == 'save' else again.restore_best
  assert restore(_state(0)) is None
  getattr(again, save)(_state(4, value=1.0), {'of': 2})
  restored, metadata = restore(_state(0))
  assert metadata == {'of': 2}
  _assert_equal(restored, _state(4, value=1.0))


def test_a_step_that_is_damaged_is_saved_again(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  saved.save(_state(2), {'of': 1})
  (tmp_path / 'checkpoints' / '2' / 'metadata' / 'metadata').unlink()
  saved.save(_state(2, value=1.0), {'of': 2})
  restored, metadata = saved.restore(_state(0))
  assert metadata == {'of': 2}
  _assert_equal(restored, _state(2, value=1.0))


@pytest.mark.parametrize(
  ('manifest', 'problem'),
  [
    ('{}', 'manifest.json does not list '),
    ('[]', r'manifest.json: expected an object, got \[\]'),
    ('[' * 100_000, 'manifest.json: not JSON: nested too deeply'),
    ('{"metadata/metadata": 1}', 'metadata/metadata: expected a text, got 1'),
    (b'\xff', 'manifest.json: not UTF-8'),
  ],
)
def test_a_manifest_that_is_none(tmp_path, capsys, manifest, problem):
  saved = checkpoints.Checkpoints(tmp_path, 3)
  for step in (2, 4):
    saved.save(_state(step), {'step': step})
  path = tmp_path / 'checkpoints' / '4' / 'manifest.json'
  if isinstance(manifest, str):
    manifest = manifest.encode()
  path.write_bytes(manifest)
  again = checkpoints.Checkpoints(tmp_path, 3)
  assert again.restore(_state(0))[1] == {'step': 2}
  said = capsys.readouterr().out
  assert re.search(rf'4: has changed since .*\(.*{problem}', said)


def test_what_a_kill_left_is_ignored_and_removed(tmp_path):
  first = checkpoints.Checkpoints(tmp_path, 2)
  first.save(_state(2), {'step': 2})
  first.save(_state(4), {'step': 4})
  first.close()
  directory = tmp_path / 'checkpoints'
  # Cut off while step 6 was written, and while step 2 was deleted.
  unfinished = directory / '6.orbax-checkpoint-tmp'
  shutil.copytree(directory / '4', unfinished)
  (unfinished / 'metadata' / 'metadata').unlink()
  shutil.rmtree(directory / '2' / 'state')
  second = checkpoints.Checkpoints(tmp_path, 2)
  restored, metadata = second.restore(_state(0))
  assert metadata == {'step': 4}
  _assert_equal(restored, _state(4))
  second.save(_state(6), {'step': 6})
  second.close()
  assert _saved(directory) == ['4', '6']
  _assert_equal(
    checkpoints.Checkpoints(tmp_path, 2).restore(_state(0))[0], _state(6)
  )


def test_restores_into_the_sharding_asked_for(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  saved.save(_state(2), {'step': 2})
  mesh = partitioning.make_mesh((-1, 1, 1))
  table = NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
  whole = partitioning.replicated(mesh)
  like = jax.tree.map(
    lambda x: jax.device_put(x, table if x.ndim == 2 else whole), _state(0)
  )
  restored, _ = saved.restore(like)
  _assert_equal(restored, _state(2))
  for leaf in jax.tree.leaves(restored):
    assert leaf.sharding == (table if leaf.ndim == 2 else whole)


_TWO_DEVICES = """
import jax, numpy, optax, sys
import jax.numpy as jnp
from vtokens.run import checkpoints
from vtokens import config
from vtokens.method import optim, steps, virtual_tokens
from vtokens.devices import partitioning
from vtokens.host import writers

mesh = partitioning.make_mesh((1, 2, 1))
sharding = partitioning.named_sharding(mesh, virtual_tokens.TABLE.axes())
whole = partitioning.replicated(mesh)
optimizer = optim.make_optimizer(config.Optim(), 200)
table = jnp.zeros((3, 4))
like = jax.tree.map(
  lambda x: jax.device_put(x, sharding if x.ndim == 2 else whole),
  steps.TrainState(
    trained=table, opt_state=optimizer.init(table), step=jnp.int32(0)
  ),
)
restored, _ = checkpoints.Checkpoints(sys.argv[1], 2).restore(like)
assert len(restored.trained.addressable_shards) == 2
for shard in restored.trained.addressable_shards:
  assert shard.data.shape == (3, 2)
assert restored.opt_state[1][0].mu.sharding == sharding
print(numpy.asarray(restored.trained).tobytes().hex())
"""


def test_restores_over_more_devices(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, 2)
  saved.save(_state(2), {'step': 2})
  printed = device_programs.run(_TWO_DEVICES, str(tmp_path), devices=2)
  table = np.asarray(_state(2).trained)
  assert printed.split() == [table.tobytes().hex()]


def test_is_small(tmp_path):
  # Table, two moments, a few counters: never the base.
  saved = checkpoints.Checkpoints(tmp_path, 2)
  optimizer = optax.adam(1e-3)
  table = jax.random.normal(jax.random.key(0), (50, 1024))
  state = steps.TrainState(
    trained=table, opt_state=optimizer.init(table), step=jnp.int32(1)
  )
  state = jax.tree.map(lambda x: x + table if x.ndim else x, state)
  saved.save(state, {'step': 1})
  size = sum(
    path.stat().st_size for path in tmp_path.rglob('*') if path.is_file()
  )
  assert size < 3 * table.nbytes + 100_000


def _spoil(path, how):
  if how == 'cut off':
    path.write_bytes(path.read_bytes()[:-3])
  elif how == 'one bit':
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  else:
    path.unlink()


def _files_of(directory):
  return sorted(
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file()
  )


@pytest.mark.parametrize('how', ['cut off', 'one bit', 'missing'])
def test_falls_back_to_the_one_before(tmp_path, how, capsys):
  saved = checkpoints.Checkpoints(tmp_path / 'whole', 3)
  for step in (2, 4):
    saved.save(_state(step), {'step': step})
  saved.close()
  names = _files_of(tmp_path / 'whole' / 'checkpoints' / '4')
  assert 'manifest.json' in names
  assert len(names) > 5
  for number, name in enumerate(names):
    directory = tmp_path / str(number)
    shutil.copytree(tmp_path / 'whole', directory)
    _spoil(directory / 'checkpoints' / '4' / name, how)
    again = checkpoints.Checkpoints(directory, 3)
    restored, metadata = again.restore(_state(0))
    assert metadata == {'step': 2}, name
    _assert_equal(restored, _state(2))
    said = capsys.readouterr().out
    if (name, how) == ('manifest.json', 'missing'):
      assert 'checkpoints/4: cut off by a kill; removed' in said
    else:
      assert 'checkpoints/4: has changed since it was written (' in said
      assert f'moved to {directory}/unreadable/checkpoints-4' in said
    # The step can be saved anew.
    again.save(_state(4, value=1.0), {'step': 4})
    again.close()
    fresh = checkpoints.Checkpoints(directory, 3)
    _assert_equal(fresh.restore(_state(0))[0], _state(4, value=1.0))
    assert capsys.readouterr().out == ''


def test_none_is_whole(tmp_path, capsys):
  saved = checkpoints.Checkpoints(tmp_path, 3)
  for step in (2, 4):
    saved.save(_state(step), {'step': step})
    path = tmp_path / 'checkpoints' / str(step) / 'metadata' / 'metadata'
    path.write_text('{}')
  saved.save_best(_state(2), {'step': 2})
  again = checkpoints.Checkpoints(tmp_path, 3)
  assert again.restore(_state(0)) is None
  assert capsys.readouterr().out.count('metadata has changed') == 2
  assert again.restore_best(_state(0))[1] == {'step': 2}
  assert _saved(tmp_path / 'unreadable') == ['checkpoints-2', 'checkpoints-4']


_LIMITS = (0, 100, 300, 1000)

# In a process of its own, as a run is: TensorStore goes on writing, in threads
# that cannot be waited for, after a save has failed.
_FULL = """
import pathlib, resource, signal, sys
import jax.numpy as jnp
import checkpoints_test
from vtokens.run import checkpoints
from vtokens.host import errors

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[2:]):
  directory = pathlib.Path(sys.argv[1]) / str(limit)
  saved = checkpoints.Checkpoints(directory, 3)
  saved.save(checkpoints_test._state(2), {'step': 2})
  whole = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))
  try:
    saved.save(checkpoints_test._state(4), {'step': 4})
  except errors.UserError as e:
    message = str(e)
  else:
    message = 'saved'
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, whole)
  (directory / 'message').write_text(message)
  # The same object can save the step once there is room.
  again = pathlib.Path(sys.argv[1]) / f'{limit}-again'
  saved = checkpoints.Checkpoints(again, 3)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))
  try:
    saved.save(checkpoints_test._state(4), {'step': 4})
  except errors.UserError:
    pass
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, whole)
  saved.save(checkpoints_test._state(4), {'step': 4})
  saved.close()
"""


@pytest.fixture(scope='module')
def on_full_disks(tmp_path_factory):
  """By limit of the files' sizes, directories in which step 4 failed."""
  directory = tmp_path_factory.mktemp('full')
  done = subprocess.run(
    [sys.executable, '-c', _FULL, str(directory), *map(str, _LIMITS)],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(
        map(str, (_ROOT, _ROOT / 'tests' / 'run', _ROOT / 'tests' / 'support'))
      ),
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  # TensorStore's threads go on after the first failure, and report others.
  assert 'Traceback' not in done.stderr
  return directory


@pytest.mark.parametrize('limit', _LIMITS)
def test_a_file_that_cannot_be_written(on_full_disks, limit):
  """As on a full disk: files cannot grow beyond a limit."""
  directory = on_full_disks / str(limit)
  assert re.search(
    r'step 4 cannot be written: .* after step 2$',
    (directory / 'message').read_text(),
    re.DOTALL,
  )
  assert _saved(directory / 'checkpoints') == ['2']
  again = checkpoints.Checkpoints(directory, 3)
  restored, metadata = again.restore(_state(0))
  assert metadata == {'step': 2}
  _assert_equal(restored, _state(2))
  again.save(_state(4), {'step': 4})
  assert again.restore(_state(0))[1] == {'step': 4}
  again = checkpoints.Checkpoints(on_full_disks / f'{limit}-again', 3)
  _assert_equal(again.restore(_state(0))[0], _state(4))


def test_files_that_cannot_be_read_again(tmp_path, monkeypatch):
  """The save fails at its manifest, which has the hashes of all files."""

  def fail(directory):
    raise OSError(errno.EIO, 'Input/output error')

  saved = checkpoints.Checkpoints(tmp_path, 3)
  with monkeypatch.context() as patch:
    patch.setattr(paths, 'files_below', fail)
    with pytest.raises(errors.UserError, match=r'cannot be written: .*Input'):
      saved.save(_state(2), {'step': 2})
  saved.save(_state(2), {'step': 2})
  _assert_equal(saved.restore(_state(0))[0], _state(2))


def test_a_manifest_that_cannot_be_written(tmp_path, monkeypatch):
  """The room that the other files take is freed."""

  def fail(path, value):
    raise errors.NotWrittenError(f'{path}: No space left on device')

  saved = checkpoints.Checkpoints(tmp_path, 3)
  saved.save(_state(2), {'step': 2})
  monkeypatch.setattr(writers, 'write_json', fail)
  with pytest.raises(errors.UserError, match='step 4 cannot be written: no sp'):
    saved.save(_state(4), {'step': 4})
  assert _saved(tmp_path / 'checkpoints') == ['2']


def test_other_errors_are_not_those_of_a_disk(tmp_path, monkeypatch):
  def save(*args, **kwargs):
    raise ValueError('sharding mismatch')

  saved = checkpoints.Checkpoints(tmp_path, 3)
  monkeypatch.setattr(ocp.CheckpointManager, 'save', save)
  with pytest.raises(ValueError, match='sharding mismatch'):
    saved.save(_state(2), {'step': 2})
