"""Tests that what the version of 2026-11-29 wrote is read and continued.

`data/made_before/README.md` says what is there and how it was made.
"""

import filecmp
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import runpy
import shutil
import tarfile

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers
from jax.experimental.compilation_cache import compilation_cache

from vtokens import ask, evaluate, export, import_table, plug, retrieve, train
from vtokens.data.build import build_command

MADE = pathlib.Path(__file__).parent / 'data' / 'made_before'
EXPECTED = json.loads((MADE / 'expected.json').read_text())
QUESTION, PASSAGES = 'Is it 71?', ['Fact 71 is b.', 'Noise.']
# Where equal, the same program gives the same bits.
DECIDE_BITS = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


@pytest.fixture(scope='module', autouse=True)
def _compile_once(tmp_path_factory):
  """Most tests run the same few programs."""
  settings = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('jax_cache')),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def unpack(tmp_path, monkeypatch):
  """Gives a copy of the files, as the current directory: paths are relative."""
  shutil.copytree(
    MADE,
    tmp_path,
    dirs_exist_ok=True,
    ignore=shutil.ignore_patterns('*.tar.gz', '__pycache__'),
  )
  monkeypatch.chdir(tmp_path)

  def extract(*names: str) -> pathlib.Path:
    for name in names:
      with tarfile.open(MADE / f'{name}.tar.gz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path

  return extract


def settings(file, **changes):
  """What a config file of users has, with sections or fields changed."""
  cfg = runpy.run_path(file)['get_config']()
  for name, value in changes.items():
    if isinstance(value, dict):
      for field, inner in value.items():
        setattr(getattr(cfg, name), field, inner)
    else:
      setattr(cfg, name, value)
  return cfg


def files(*directories):
  """Content and time of all files but locks, by path."""
  return {
    str(path): (path.read_bytes(), path.stat().st_mtime_ns)
    for directory in directories
    for path in sorted(pathlib.Path(directory).rglob('*'))
    if path.is_file() and not path.name.endswith('.lock')
  }


def table(path):
  return safetensors.numpy.load_file(path)['virtual_tokens']


def sha256(rows):
  return hashlib.sha256(rows.astype('<f4').tobytes()).hexdigest()


def summary(workdir):
  return json.loads(pathlib.Path(workdir, 'summary.json').read_text())


def machine():
  """What decides the last bits, beside the program."""
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  processor = {x for x in lines if x.startswith(('model name', 'flags'))}
  return {
    'machine': platform.machine(),
    'processor': hashlib.sha256(
      '\n'.join(sorted(processor)).encode()
    ).hexdigest(),
    'cores': len(os.sched_getaffinity(0)),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    **{name: importlib.metadata.version(name) for name in DECIDE_BITS},
  }


def assert_table_as_before(found, before):
  """Within rounding, and bit for bit on a machine like that of before."""
  np.testing.assert_allclose(table(found), table(before), rtol=0, atol=1e-5)
  if EXPECTED['machine'] == machine():
    np.testing.assert_array_equal(table(found), table(before))


@pytest.mark.slow
def test_training_goes_on(unpack, capsys):
  unpack('half', 'finished')
  before = files('half')
  train.main(settings('tiny.py', workdir='half'))
  assert 'continuing after step 6' in capsys.readouterr().out
  after = files('half')
  # Nothing is tokenised, scored or logged again.
  kept = [
    name
    for name in before
    if name.startswith(('half/tokens/', 'half/best/6/', 'half/predictions/'))
    or name == 'half/untrained.json'
  ]
  assert len(kept) > 20
  for name in kept:
    assert after[name] == before[name], name
  then, now = before['half/metrics.jsonl'][0], after['half/metrics.jsonl'][0]
  assert now.startswith(then)
  added = map(json.loads, now[len(then) :].splitlines())
  steps = [row['step'] for row in added if 'loss' in row]
  assert steps == [7, 8, 9, 10, 11, 12]
  assert_table_as_before('half/table.safetensors', 'finished/table.safetensors')
  assert summary('half')['steps'] == 12
  assert summary('half')['k'].keys() == summary('finished')['k'].keys()


@pytest.mark.slow
def test_training_afresh_gives_the_same_table(unpack):
  unpack('finished')
  train.main(settings('tiny.py', workdir='fresh'))
  assert_table_as_before(
    'fresh/table.safetensors', 'finished/table.safetensors'
  )
  for key in ('steps', 'base_fingerprint', 'quantize'):
    assert summary('fresh')[key] == summary('finished')[key]
  for name in ('base.json', 'data.json'):
    assert filecmp.cmp(f'fresh/{name}', f'finished/{name}', shallow=False)


def test_a_finished_run_is_left_as_it_is(unpack):
  unpack('finished')
  before = files('finished')
  train.main(settings('tiny.py', workdir='finished'))
  assert files('finished') == before
  rows = table('finished/table.safetensors')
  assert summary('finished')['table_sha256'] == sha256(rows)


@pytest.mark.slow
def test_a_finished_run_is_asked(unpack):
  unpack('finished')
  found = ask.ask('finished', QUESTION, PASSAGES)
  assert [answer.text for answer in found.values()] == list(
    EXPECTED['ask'].values()
  )


def test_answers_of_an_evaluation_are_kept(unpack):
  unpack('finished', 'evaluation')
  before = files('evaluation/cells')
  report = json.loads(pathlib.Path('evaluation/report.json').read_text())
  evaluate.main(settings('evaluation.py'))
  assert len(before) == 5
  # Not even written again.
  assert files('evaluation/cells') == before
  again = json.loads(pathlib.Path('evaluation/report.json').read_text())
  assert again['cells'] == report['cells']


def test_an_evaluation_goes_on(unpack):
  """Of one cell answers are missing, and further cells are asked for."""
  unpack('finished', 'evaluation')
  before = {name: data for name, (data, _) in files('evaluation/cells').items()}
  (cut,) = [name for name in before if '_tokens_finished_k4_m2-' in name]
  lines = before[cut].splitlines(keepends=True)
  pathlib.Path(cut).write_bytes(b''.join(lines[:4]))
  evaluate.main(settings('evaluation.py', num_active=(4, 2)))
  after = {name: data for name, (data, _) in files('evaluation/cells').items()}
  completed = after[cut].splitlines(keepends=True)
  assert completed[:4] == lines[:4]
  assert sorted(json.loads(line)['id'] for line in completed[1:]) == sorted(
    json.loads(line)['id'] for line in lines[1:]
  )
  del before[cut], after[cut]
  assert before.items() < after.items()
  (added,) = after.keys() - before.keys()
  assert '_tokens_finished_k2_m2-' in added


def test_a_dataset_is_kept_and_trained_on(unpack):
  unpack('dataset', 'on_dataset')
  before = files('dataset')
  build_command.main(settings('dataset.py'))
  assert files('dataset') == before
  cfg = settings(
    'tiny.py',
    workdir='run',
    data={
      'train': ('records:dataset/retrieval_qa/tiny/1.0.0:train',),
      'validation': (),
      'test': (),
    },
    train={'num_steps': 3},
  )
  train.main(cfg)
  assert_table_as_before(
    'run/table.safetensors', 'on_dataset/table.safetensors'
  )


def test_an_index_is_searched_again(unpack):
  unpack('retrieval')
  before = files('index', 'retrieved')
  # Times of the corpus' files are noted there; a copy has others.
  before.pop('index/hashes.json')
  retrieve.main(settings('retrieval.py'))
  after = files('index', 'retrieved')
  # Last: it says that the run is finished.
  for name in ('index/hashes.json', 'retrieved/recall.json'):
    after.pop(name)
  assert len(before) > 60
  recall, _ = before.pop('retrieved/recall.json')
  assert after == before
  assert pathlib.Path('retrieved/recall.json').read_bytes() == recall
  # Another run over the same index finds the same.
  index = files('index')
  retrieve.main(settings('retrieval.py', workdir='again', compress=False))
  searched = files('index')
  for name in index.keys() - {'index/hashes.json'}:
    assert searched[name] == index[name], name
  assert pathlib.Path('again/records.jsonl').read_bytes() == gzip.decompress(
    pathlib.Path('retrieved/records.jsonl.gz').read_bytes()
  )


@pytest.mark.parametrize('name', EXPECTED['exports'])
def test_an_export_is_plugged_in(name, unpack):
  unpack('exported', 'finished')
  expected = EXPECTED['exports'][name]
  found = plug.load(f'exported/{name}')
  np.testing.assert_array_equal(
    found.table, table('finished/table.safetensors')
  )
  assert found.meta.table_sha256 == expected['table_sha256']
  assert list(found.meta.tokens.ids) == expected['ids']
  assert list(found.meta.tokens.names) == expected['names']
  if 'prompt_ids' in expected:
    directory = 'exported/hf' if name == 'hf' else 'base'
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = plug.prompt_ids(tokenizer, PASSAGES, QUESTION, 3, found.meta)
    assert ids == expected['prompt_ids']


@pytest.mark.parametrize(
  'kind, path, base',
  [
    *(
      ('vtokens', f'exported/{name}', 'base')
      for name in ('vtokens', 'spring-pt', 'hf', 'peft', 'old_place')
    ),
    ('vtokens', 'exported/gguf', 'base.gguf'),
    ('spring-pt', 'exported/spring-pt/virtual_tokens.pt', 'base.gguf'),
  ],
)
def test_an_export_is_imported(kind, path, base, unpack):
  unpack('exported', 'imported')
  import_table.import_table(kind, path, base, 'out')
  np.testing.assert_array_equal(
    table('out/table.safetensors'), table('imported/table.safetensors')
  )
  if kind == 'spring-pt':
    for name in ('base.json', 'table.safetensors', 'vtokens.json'):
      assert filecmp.cmp(f'out/{name}', f'imported/{name}', shallow=False)


@pytest.mark.parametrize(
  'name, workdir, model',
  [
    ('spring-pt', 'finished', None),
    ('hf', 'finished', 'model.safetensors'),
    ('peft', 'finished', 'trainable_tokens/adapter_model.safetensors'),
    ('gguf', 'imported', 'model.gguf'),
  ],
)
def test_a_run_is_exported_as_before(name, workdir, model, unpack):
  """It passes the gate; what serving programs read is the same."""
  unpack('exported', workdir)
  cfg = export.Config(workdir=workdir, data=('test.jsonl',))
  for field, value in (
    ('questions', 4),
    ('logits', 1),
    ('sampled', 16),
    ('batch_size', 4),
  ):
    setattr(cfg.gate, field, value)
  export.export(cfg, name, 'out')
  assert json.loads(pathlib.Path('out/gate.json').read_text())['passed']
  for file in (
    'vtokens.json',
    'virtual_tokens/table.safetensors',
    *([model] if model else []),
  ):
    assert filecmp.cmp(f'out/{file}', f'exported/{name}/{file}', shallow=False)
