"""A run with keys and values as virtual tokens, from training to answers."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_run

from vtokens import ask, evaluate, export, import_table, train
from vtokens.evaluation import eval_config
from vtokens.evaluation.tasks import Task
from vtokens.exports import export_config
from vtokens.host import errors, stopping
from vtokens.run.workdir import RunDir
from vtokens.serving import artifact, plug, trained_file

KV = {
  'virtual_tokens': {'kind': 'kv', 'draw': 'uniform'},
  'optim': {'learning_rate': 0.1},
  'data': {'batch_size': 4, 'examples_per_row': 2, 'shapes': ()},
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tiny_run.make_place(tmp_path_factory.mktemp('kv'))


@pytest.fixture(scope='module')
def workdir(place):
  train.train(place.load(place.root / 'kv', **KV), stopping.StopRequest())
  return place.root / 'kv'


def read(workdir):
  return RunDir(workdir).read('--workdir', scored=True)


def test_it_learns_and_says_what_it_is(workdir, place):
  found = read(workdir)
  assert found.count == found.num_trained == tiny_run.ROWS
  assert {x.shape for x in found.values.values()} == {(2, 4, 2, 8)}
  assert not (workdir / 'table.safetensors').exists()
  summary = tiny_run.summary(workdir)
  assert summary['kv_sha256'] == found.sha256
  losses = [
    row['loss']
    for row in map(
      json.loads, (workdir / 'metrics.jsonl').read_text().splitlines()
    )
    if 'loss' in row
  ]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_stopped_and_continued_it_is_the_same(workdir, place):
  """The second process has the checkpoint alone."""

  class StopAfter(stopping.StopRequest):
    def check_together(self):
      if tiny_run.last_step(other) >= 5:
        raise stopping.Stopped(2, agreed=True)

  other = place.root / 'stopped'
  cfg = place.load(other, **KV)
  with pytest.raises(stopping.Stopped):
    train.train(cfg, StopAfter())
  assert not (other / 'summary.json').exists()
  train.train(place.load(other, **KV), stopping.StopRequest())
  assert read(other).sha256 == read(workdir).sha256


@pytest.fixture(scope='module')
def table_run(place):
  changed = {**KV, 'virtual_tokens': {'position': 'last'}}
  path = place.root / 'table'
  train.train(place.load(path, **changed), stopping.StopRequest())
  return path


def test_evaluated_beside_a_table(workdir, table_run, place, tmp_path):
  """Each as training scored it, though asked together with the other."""
  cfg = tiny_run.evaluation(tmp_path / 'eval', place, (workdir, table_run))
  found = evaluate.evaluate(cfg, stopping.StopRequest())
  assert found['general']['untouched'][0]['tables used'] == 2

  for run in (workdir, table_run):
    for k in (1, 4):
      trained = tiny_run.answers(run / 'predictions' / f'tokens_k{k}.jsonl')
      [file] = [
        name
        for name in found['files']
        if {'predictions', run.name, f'k{k}'} <= set(re.split(r'[/_.]', name))
      ]
      assert tiny_run.answers(tmp_path / 'eval' / file) == trained


def test_asked(workdir):
  summary = tiny_run.summary(workdir)
  assert summary['k'].keys() == {'1', '4'}
  passages = ['Fact 70 is b.', 'Noise.']
  replies = {k: ask.ask(str(workdir), 'Is it 70?', passages, k) for k in (1, 4)}
  assert 'with 1 virtual tokens' in replies[1]
  one, four = ([a.ids for a in replies[k].values()] for k in (1, 4))
  assert one[:-1] == four[:-1]


@pytest.fixture
def settings(workdir):
  gate = export_config.Gate(questions=4, logits=2, sampled=16, batch_size=4)
  found = export_config.Config(workdir=str(workdir), gate=gate)
  export_config.validate(found)
  return found


def test_exported(workdir, settings, tmp_path):
  out = tmp_path / 'out'
  export.export(settings, 'vtokens', str(out))
  gate = json.loads((out / 'gate.json').read_text())
  assert gate['passed']
  assert len(gate['checks']) == 7
  assert sorted(path.name for path in out.iterdir()) == [
    *('README.md', 'gate.json', 'virtual_tokens', 'vtokens.json')
  ]
  table = plug.load(out)
  assert (table.meta.kind, table.meta.format) == ('kv', 2)
  assert table.meta.table_sha256 == read(workdir).sha256
  assert (out / 'virtual_tokens' / 'keys_values.safetensors').exists()
  again = tmp_path / 'again'
  artifact.write(again, table)
  for name in (artifact.KEYS_VALUES, artifact.META):
    assert (again / name).read_bytes() == (out / name).read_bytes()
  card = (out / 'README.md').read_text()
  assert '4 virtual tokens, each a key and a value of 2 x 8 numbers' in card
  # The recipe of the card gives the answer of `ask`.
  question, passages = 'Is it 70?', ['Fact 70 is b.', 'Noise.']
  recipe = card.split('```python\n')[1].split('```')[0]
  recipe = recipe.replace("load('.')", f'load({str(out)!r})')
  base = re.search(r"base = '(.*?)'", recipe)[0]
  recipe = recipe.replace(base, f'base = {read(workdir).config.base.path!r}')
  recipe = recipe.replace('max_new_tokens=16', 'max_new_tokens=3')
  names = {'passages': passages, 'question': question}
  exec(recipe, names)
  [expected] = [
    reply.text
    for name, reply in ask.ask(str(workdir), question, passages, 4).items()
    if name == 'with 4 virtual tokens'
  ]
  assert names['answer'] == expected
  with pytest.raises(errors.UserError, match=r'a table is imported.*kv'):
    import_table.import_table('vtokens', str(out), '', str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_an_export_that_answers_otherwise(settings, tmp_path, monkeypatch):
  """The gate reads the export with transformers."""

  def load(directory):
    found = artifact.read(directory)
    keys = found.values['keys'] + 1
    return artifact.Artifact({**found.values, 'keys': keys}, found.meta)

  monkeypatch.setattr(plug, 'load', load)
  with pytest.raises(errors.UserError, match='logits at answer positions'):
    export.export(settings, 'vtokens', str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_where_only_a_table_has_a_place(workdir, place, tmp_path):
  cfg = export_config.Config(workdir=str(workdir))
  for kind in ('hf', 'hf-base', 'peft', 'gguf', 'spring-pt'):
    with pytest.raises(
      errors.UserError,
      match=rf"^--to {kind}: .* keys and values \(kind='kv'\); use them with",
    ):
      export.export(cfg, kind, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
  (place.root / 'math.jsonl').write_text(
    '{"id": "1", "question": "1 + 1?", "answers": ["2"]}\n'
  )
  task = Task(
    source=str(place.root / 'math.jsonl'),
    format='gsm8k',
    num_active=2,
    max_new_tokens=2,
  )
  cfg = eval_config.Config(
    workdir=str(tmp_path / 'eval'),
    runs=(str(workdir),),
    data=eval_config.Data(max_prefix_tokens=48, max_suffix_tokens=32),
    conditions=(),
    tasks={'math': task},
  )
  with pytest.raises(errors.UserError, match="kind='kv'"):
    evaluate.evaluate(cfg, stopping.StopRequest())


def test_of_another_base(workdir, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(workdir, other)
  values = read(workdir).values
  trained_file.save(
    other / 'keys_values.safetensors',
    {name: x[:1] for name, x in values.items()},
    dict(read(workdir).metadata),
  )
  with pytest.raises(
    errors.UserError, match=r'shape \[1, 4, 2, 8\], expected \[2, 4, 2, 8\]'
  ):
    ask.ask(str(other), 'Is it 70?', [])
