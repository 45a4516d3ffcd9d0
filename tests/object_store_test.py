"""Work directories and data on an object store, gs://."""

import json
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import object_store
import optax
import pytest
import tiny_run
from etils import epath

from vtokens import ask, config, evaluate
from vtokens.evaluation import eval_config
from vtokens.host import errors, locks, paths, stopping, writers
from vtokens.method.steps import TrainState
from vtokens.run.checkpoints import Checkpoints
from vtokens.serving import table_file


@pytest.fixture(scope='module')
def bucket():
  with object_store.serve() as url:
    yield epath.Path(url)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tiny_run.make_place(tmp_path_factory.mktemp('object_store'))


def _state(step):
  table = jnp.full((4, 8), float(step))
  return TrainState(
    trained=table, opt_state=optax.adam(1.0).init(table), step=jnp.int32(step)
  )


def test_a_file_is_written_and_grows(bucket):
  path = bucket / 'files' / 'a.txt'
  writers.write_text(path, 'ab')
  writers.append(path, 2, b'cd')
  writers.append(path, 3, b'e')
  writers.append(bucket / 'files' / 'b.txt', 0, b'new')
  assert path.read_text() == 'abce'
  # No temporary file is left.
  assert sorted(p.name for p in path.parent.iterdir()) == ['a.txt', 'b.txt']


def test_a_table_comes_back(bucket):
  table = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
  table_file.save(bucket / 't.safetensors', table, {'step': 3})
  found, metadata = table_file.load(f'{bucket}/t.safetensors')
  np.testing.assert_array_equal(found, table)
  assert metadata == {'step': 3}
  with pytest.raises(errors.UserError, match='not found'):
    table_file.load(bucket / 'none.safetensors')


def test_a_marker_is_no_file(bucket):
  """As the console and gcsfuse leave them for directories."""
  writers.write_text(bucket / 'marked' / 'a' / 'b.txt', 'b')
  for name in ('marked/', 'marked/a/'):
    object_store.put(name, b'')
  found = [str(path) for path in paths.files_below(bucket / 'marked')]
  assert found == [f'{bucket}/marked/a/b.txt']
  # A file may have the name of its directory.
  writers.write_text(bucket / 'same' / 'same', 'b')
  found = [str(path) for path in paths.files_below(bucket / 'same')]
  assert found == [f'{bucket}/same/same']


def test_a_file_that_lost_its_content(bucket):
  writers.write_text(bucket / 'short.txt', 'ab')
  with pytest.raises(errors.UserError, match=r'has \d bytes, but 3 '):
    writers.append(bucket / 'short.txt', 3, b'd')


def test_a_bucket_that_is_not_there(bucket):
  with (
    pytest.raises(errors.UserError, match='gs://no-such-bucket/run'),
    locks.sole_writer('gs://no-such-bucket/run'),
  ):
    pass


def test_a_broken_checkpoint_is_set_aside(bucket):
  directory = bucket / 'broken'
  checkpoints = Checkpoints(directory, 2)
  for step in (1, 2, 3):
    checkpoints.save(_state(step), {'step': step})
  checkpoints.close()
  last = directory / 'checkpoints' / '3'
  name = next(
    name
    for name in json.loads((last / 'manifest.json').read_text())
    if name.endswith('manifest.ocdbt')
  )
  (last / name).write_bytes(b'x')
  checkpoints = Checkpoints(directory, 2)
  restored = checkpoints.restore(_state(0))
  assert restored is not None
  assert restored[1] == {'step': 2}
  jax.tree.map(np.testing.assert_array_equal, restored[0], _state(2))
  assert not last.exists()
  assert (directory / 'unreadable' / 'checkpoints-3' / name).exists()
  # What is computed again takes its place.
  checkpoints.save(_state(3), {'step': 3})
  checkpoints.close()
  restored = Checkpoints(directory, 2).restore(_state(0))
  assert restored is not None
  assert restored[1] == {'step': 3}


@pytest.mark.slow
def test_a_run_stopped_and_continued_equals_one_on_a_disk(
  bucket, place, monkeypatch
):
  """With data from the store, traced; then asked and evaluated from there."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(place.root / 'caches'))
  sources = {}
  for name in ('train', 'validation', 'test'):
    remote = bucket / 'data' / f'{name}.jsonl'
    writers.write_bytes(remote, (place.root / f'{name}.jsonl').read_bytes())
    sources[name] = f"--config.data.{name}=('{remote}',)"
  local = place.root / 'local'
  result = place.run(place.command(local, *sources.values()))
  assert result.returncode == 0, result.stderr

  workdir = bucket / 'run'
  command = place.command(
    workdir,
    *sources.values(),
    '--config.tracking.profile_steps=(2,3)',
    '--config.tracking.tensorboard=True',
  )
  status, out = place.signal_when(
    lambda: (workdir / 'checkpoints' / '3').exists(), signal.SIGTERM, command
  )
  assert status == 143, out
  result = place.run(command)
  assert result.returncode == 0, result.stderr
  assert 'continuing after step' in result.stdout
  assert str(place.root / 'caches') in result.stdout
  tiny_run.assert_same_result(workdir, local)
  table, _ = table_file.load(workdir / 'table.safetensors')
  expected, _ = table_file.load(local / 'table.safetensors')
  np.testing.assert_array_equal(table, expected)
  assert (workdir / 'training.png').read_bytes().startswith(b'\x89PNG')
  assert any(
    path.name.startswith('events')
    for path in (workdir / 'tensorboard').iterdir()
  )
  assert (workdir / 'profile' / 'plugins').is_dir()
  # Nothing went to a local directory of that name.
  assert not (place.root / 'gs:').exists()

  answers = ask.ask(str(workdir), 'Is it 70?', ['Fact 70 is b.'], None)
  assert 'with 4 virtual tokens' in answers

  def evaluation(place, run) -> eval_config.Config:
    return eval_config.Config(
      workdir=str(place / 'evaluated'),
      runs=(str(run),),
      data=eval_config.Data(
        sources=(str(bucket / 'data' / 'test.jsonl'),),
        max_prefix_tokens=48,
        max_suffix_tokens=32,
      ),
      conditions=('closed_book', 'tokens'),
      num_active=(4,),
      num_passages=(1,),
      decode=config.Decode(batch_size=2, max_new_tokens=3),
      report=eval_config.Report(resamples=50, permutations=50),
    )

  cfg = evaluation(bucket, workdir)
  rounds = iter([None, None, stopping.Stopped(signal.SIGTERM, agreed=True)])

  def among(number: int) -> int:
    if (stopped := next(rounds)) is not None:
      raise stopped
    return number

  with pytest.raises(stopping.Stopped):
    evaluate.evaluate(cfg, stopping.StopRequest(among))
  cells = bucket / 'evaluated' / 'cells'
  assert any(path.read_bytes().count(b'\n') > 1 for path in cells.iterdir())
  found = evaluate.evaluate(cfg, stopping.StopRequest())
  expected = evaluate.evaluate(
    evaluation(place.root, local), stopping.StopRequest()
  )
  assert [{**cell, 'table': ''} for cell in found['cells']] == [
    {**cell, 'table': ''} for cell in expected['cells']
  ]
  for name in found['files']:
    assert (bucket / 'evaluated' / name).exists()


@pytest.mark.parametrize(
  'field, value',
  [
    ('base.path', 'gs://bucket/base'),
    ('data.token_cache', 'gs://bucket/tokens'),
  ],
)
def test_what_needs_a_disk_says_so(place, tmp_path, field, value):
  result = place.run(place.command(tmp_path, f'--config.{field}={value}'))
  assert result.returncode == 1
  assert f'config.{field}' in result.stderr
  assert value in result.stderr
  assert 'Traceback' not in result.stderr


def _run(place, program, **env):
  arguments = {
    'ask': ['--workdir=gs://bucket/run', '--question=Is it?'],
    'evaluate': [
      f'--config={tiny_run.ROOT}/configs/eval/open_qa.py',
      "--config.runs=('gs://bucket/run',)",
    ],
    'train': [
      f'--config={place.config_file}',
      '--config.workdir=gs://bucket/run',
    ],
  }
  result = subprocess.run(
    [sys.executable, '-m', f'vtokens.{program}', *arguments[program]],
    env={**place.env, **env},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 1
  assert 'Traceback' not in result.stderr
  return result.stderr


@pytest.mark.parametrize('program', ['ask', 'evaluate', 'train'])
def test_without_the_client(place, tmp_path, program):
  (tmp_path / 'sitecustomize.py').write_text(
    "import sys\nsys.modules['gcsfs'] = None\n"
  )
  said = _run(place, program, PYTHONPATH=f'{tiny_run.ROOT}:{tmp_path}')
  assert 'Please install gcsfs' in said


@pytest.mark.parametrize('program', ['ask', 'evaluate', 'train'])
def test_a_store_that_refuses(bucket, place, program):
  with object_store.refusing(401):
    said = _run(place, program, PYTHONPATH=str(tiny_run.ROOT))
  assert 'error: ' in said
  assert '401' in said or 'Unauthorized' in said
