"""Tests of vtokens.evaluate: the program on a tiny random Llama."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import xla_flags

from vtokens import config, evaluate
from vtokens.evaluation import eval_config, tasks
from vtokens.evaluation.asking import cell_files
from vtokens.evaluation.asking import evaluated_models as eval_models
from vtokens.host import checksums, errors, locks, stopping
from vtokens.models import frozen_base
from vtokens.serving import table_file
from vtokens.settings import schema

ROOT = pathlib.Path(__file__).parents[1]
ROWS = 4
WORDS = ('red', 'blue', 'green', 'grey', 'pink', 'teal', 'gold')

CONFIG = """
from vtokens import config
from vtokens.evaluation import config as eval_config

def get_config():
  return eval_config.Config(
    workdir={root!r} + '/eval',
    runs=({root!r} + '/a', {root!r} + '/b'),
    data=eval_config.Data(
      sources=({root!r} + '/questions.jsonl',),
      max_prefix_tokens=200,
      max_suffix_tokens=230,
    ),
    conditions=('closed_book', 'prompt', 'tokens'),
    num_active=(4, 2),
    num_passages=(2, 0),
    retrievers=('bm25', 'dense'),
    decode=config.Decode(
      batch_size=3, max_new_tokens=5, stop_at_newline=False
    ),
    report=eval_config.Report(resamples=50, permutations=50),
  )
"""


def write_run(path: pathlib.Path, base: pathlib.Path, seed: int, **settings):
  """A finished training run with a random table."""
  cfg = config.Config(
    base=config.Base(path=str(base), dtype='float32'),
    virtual_tokens=config.VirtualTokens(
      num_virtual_tokens=ROWS, num_active=ROWS, **settings
    ),
    data=config.Data(train=('unused.jsonl',)),
    eval=config.Eval(num_active=(1,)),
  )
  path.mkdir()
  values = schema.to_dict(cfg)
  del values['workdir']
  (path / 'config.json').write_text(json.dumps(values))
  table = np.random.default_rng(seed).normal(size=(ROWS, 64))
  fingerprint = frozen_base.open_base(cfg.base).fingerprint
  table_file.save(
    path / 'table.safetensors',
    table.astype(np.float32),
    {'fingerprint': fingerprint, 'step': 3},
  )


def write_questions(path: pathlib.Path) -> None:
  rows = []
  for i in range(10):
    passages = {
      name: [
        {'id': f'{name}{i}.{j}', 'text': f'{WORDS[(i + j) % 7]} ' * (i + j)}
        for j in (1, 2, 3)
      ]
      for name in ('bm25', 'dense')
    }
    rows.append(
      {
        'id': f'q{i}',
        'dataset': 'one' if i < 7 else 'two',
        'question': 'what' + ' is' * (i % 4) + '?',
        'answers': [WORDS[i % 7]],
        'passages': passages,
      }
    )
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_dir) -> pathlib.Path:
  root = tmp_path_factory.mktemp('evaluate')
  write_run(root / 'a', tiny_dir, 0)
  write_run(root / 'b', tiny_dir, 1, position='last')
  write_questions(root / 'questions.jsonl')
  (root / 'config.py').write_text(CONFIG.format(root=str(root)))
  return root


def make_config(root: pathlib.Path, **settings) -> eval_config.Config:
  namespace: dict = {}
  exec((root / 'config.py').read_text(), namespace)
  cfg = dataclasses.replace(namespace['get_config'](), **settings)
  eval_config.validate(cfg)
  return cfg


def run(cfg: eval_config.Config, among=lambda number: number) -> dict:
  return evaluate.evaluate(cfg, stopping.StopRequest(among))


@pytest.fixture(scope='module')
def whole(root) -> dict:
  return run(make_config(root))


def answers_of(lines: list[bytes]) -> list[bytes]:
  """Lines in order of ids, without confidence: its last digits depend on the
  batch. Then the seal is left out, too.
  """
  rows = [checksums.without_seal(json.loads(line)) for line in lines]
  return sorted(
    json.dumps({k: v for k, v in row.items() if k != 'confidence'}).encode()
    for row in rows
  )


def cells_of(directory: pathlib.Path) -> dict[str, bytes]:
  """Whole lines in order of ids, by name of the file."""
  return {
    path.name: b'\n'.join(answers_of(path.read_bytes().split(b'\n')[:-1]))
    for path in directory.iterdir()
  }


def test_cells_of_all_axes(whole):
  found = {
    (
      c['dataset'],
      c['condition'],
      c['table'],
      c['num_active'],
      c['num_passages'],
      c['retriever'],
    )
    for c in whole['cells']
  }
  passages = ((2, 'bm25'), (0, ''), (2, 'dense'))
  expected = set()
  for dataset in ('one', 'two'):
    expected |= {(dataset, 'closed_book', '', 0, 0, '')}
    expected |= {(dataset, 'prompt', '', 0, *p) for p in passages}
    for table in 'ab':
      expected |= {(dataset, 'tokens', table, 4, *p) for p in passages}
      expected |= {(dataset, 'tokens', table, 2, 2, 'bm25')}
  assert found == expected
  assert {c['n'] for c in whole['cells'] if c['dataset'] == 'one'} == {7}
  assert whole['versions']['table a'] != whole['versions']['table b']
  assert whole['settings']['seed'] == 0


def test_files(whole, root):
  workdir = root / 'eval'
  for name in whole['files']:
    assert (workdir / name).stat().st_size, name
  for name in ('report.html', 'report.md', 'report.json'):
    assert (workdir / name).exists()
  rows = [
    json.loads(line)
    for path in (workdir / 'predictions').iterdir()
    for line in path.read_text().splitlines()
  ]
  assert len(rows) == 10 * len(whole['cells']) // 2
  shown = {
    tuple(row['passages'])
    for row in rows
    if row['id'] == 'q3' and row['num_passages']
  }
  assert shown == {('bm253.1', 'bm253.2'), ('dense3.1', 'dense3.2')}


def test_predictions_are_those_of_each_table_where_it_was_trained(
  whole, root, tmp_path
):
  """The other table alone, and at the position it was not trained at."""
  alone = make_config(
    root,
    workdir=str(tmp_path),
    runs=(str(root / 'b'),),
    conditions=('tokens', 'tokens_middle'),
    num_active=(),
    num_passages=(2,),
    retrievers=('bm25',),
  )
  run(alone)

  def predictions(directory, condition):
    [path] = [
      p
      for p in (directory / 'predictions').iterdir()
      if (row := json.loads(p.read_text().splitlines()[0]))['condition']
      == condition
      and row['dataset'] == 'one'
      and row['num_active'] in (0, 4)
      and row['table'] in ('', 'b')
      and row['retriever'] == 'bm25'
    ]
    return [json.loads(x)['prediction'] for x in path.read_text().splitlines()]

  own = predictions(tmp_path, 'tokens')
  assert own == predictions(root / 'eval', 'tokens')
  assert own != predictions(tmp_path, 'tokens_middle')


def test_the_bias_of_refusals(root, tmp_path):
  """Of tables that were trained to refuse; the report tells of larger ones."""
  rows = [json.loads(x) for x in (root / 'questions.jsonl').open()]
  for row in rows[::3]:
    row |= {'answers': [], 'answerable': False}
  source = tmp_path / 'questions.jsonl'
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  shutil.copytree(root / 'a', tmp_path / 'refuse')
  settings = json.loads((tmp_path / 'refuse' / 'config.json').read_text())
  settings['data']['unanswerable'] = 'refuse'
  # Bytes are tokens, and a blank would be the first of all answers.
  settings['templates']['answer'] = '{answer}'
  (tmp_path / 'refuse' / 'config.json').write_text(json.dumps(settings))

  def ask(bias: float, **decode) -> tuple[dict, dict[str, list[dict]]]:
    cfg = make_config(
      root,
      workdir=str(tmp_path / 'eval'),
      runs=(str(tmp_path / 'refuse'), str(root / 'b')),
      conditions=('closed_book', 'tokens'),
      num_active=(4,),
      num_passages=(2,),
      retrievers=('bm25',),
    )
    cfg.data = dataclasses.replace(
      cfg.data, sources=(str(source),), unanswerable='refuse'
    )
    cfg.decode = dataclasses.replace(cfg.decode, refusal_bias=bias, **decode)
    report = run(cfg)
    found: dict[str, list[dict]] = {}
    for path in sorted((tmp_path / 'eval' / 'predictions').iterdir()):
      lines = [json.loads(x) for x in path.read_text().splitlines()]
      found.setdefault(lines[0]['table'], []).extend(lines)
    return report, found

  report, plain = ask(0.0)
  cells = cells_of(tmp_path / 'eval' / 'cells')
  eager = ask(1000.0)[1]
  # Of the others, no answer was generated anew.
  assert len(cells_of(tmp_path / 'eval' / 'cells')) == len(cells) + 2
  for table in ('', 'b'):
    assert eager[table] == plain[table]
    assert 'refusal_margin' not in plain[table][0]
  assert all(row['prediction'].startswith('I') for row in eager['refuse'])
  assert not any(row['prediction'].startswith('I') for row in plain['refuse'])
  margins = [row['refusal_margin'] for row in plain['refuse']]
  assert max(margins) < 0
  assert [row['refusal_margin'] for row in eager['refuse']] == pytest.approx(
    margins, abs=1e-5
  )
  [curve] = report['refusal_curves']
  assert (curve['table'], curve['num_active']) == ('refuse', 4)
  assert curve['bias'][0] == 0
  assert (curve['recall'][0], curve['recall'][-1]) == (0, 100)
  assert curve['precision'][-1] == 100 * len(rows[::3]) / len(rows)
  text = (tmp_path / 'eval' / 'report.md').read_text()
  # Of drawn answers, margins do not tell the refusals at other biases.
  assert ask(0.0, temperature=1.0)[0]['refusal_curves'] == []
  assert re.search(r'## Refusals by bias\n(.*\n)+?.*\| +any \|', text)


def test_a_bias_without_a_table_that_refuses(root, tmp_path):
  cfg = make_config(root, workdir=str(tmp_path))
  cfg.decode = dataclasses.replace(cfg.decode, refusal_bias=1.0)
  with pytest.raises(
    errors.UserError, match=r'config\.decode\.refusal_bias=1: expected 0'
  ):
    run(cfg)


def test_questions_without_an_answer_are_scored_apart(root, tmp_path):
  rows = [json.loads(x) for x in (root / 'questions.jsonl').open()]
  for row in rows:
    if row['id'] in ('q1', 'q8'):
      row |= {'answers': [], 'answerable': False}
  source = tmp_path / 'questions.jsonl'
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = {
    'workdir': str(tmp_path / 'eval'),
    'runs': (str(root / 'a'),),
    'conditions': ('closed_book', 'tokens'),
    'num_active': (4,),
    'num_passages': (2,),
    'retrievers': ('bm25',),
  }
  cfg = make_config(root, **settings)
  cfg.data = dataclasses.replace(cfg.data, sources=(str(source),))
  left_out = run(cfg)
  assert left_out['datasets'] == {'one': 6, 'two': 2}
  assert all(one['refusals'] is None for one in left_out['abstentions'])
  cfg.data = dataclasses.replace(cfg.data, unanswerable='refuse')
  # What the table answers to q1 is taken for the refusal.
  [path] = (tmp_path / 'eval' / 'predictions').glob('one*tokens*')
  answered = [json.loads(x) for x in path.read_text().splitlines()]
  asked = run(cfg)
  assert asked['datasets'] == {'one': 7, 'two': 3}
  path = next((tmp_path / 'eval' / 'predictions').glob('one*tokens*'))
  lines = {
    row['id']: row for row in map(json.loads, path.read_text().splitlines())
  }
  assert lines['q1']['em'] is None
  assert lines['q1']['refused'] is False
  assert lines['q1']['confidence'] < 0
  # The answers to the others, and their scores, are the same.
  for row in answered:
    assert {**row, 'refused': False} == {
      **lines[row['id']],
      'confidence': pytest.approx(row['confidence'], abs=1e-5),
    }
  settings_of_run = json.loads((root / 'a' / 'config.json').read_text())
  settings_of_run['templates']['refusal'] = lines['q1']['prediction']
  shutil.copytree(root / 'a', tmp_path / 'a')
  (tmp_path / 'a' / 'config.json').write_text(json.dumps(settings_of_run))
  cfg.runs = (str(tmp_path / 'a'),)
  before = cells_of(tmp_path / 'eval' / 'cells')
  again = run(cfg)
  # The text of the refusal decides scores, not answers.
  assert cells_of(tmp_path / 'eval' / 'cells') == before
  [found] = [
    one
    for one in again['abstentions']
    if (one['dataset'], one['condition']) == ('one', 'tokens')
  ]
  refused = sum(
    row['prediction'] == lines['q1']['prediction'] for row in lines.values()
  )
  assert found['refusals'] == {
    'precision': 100 / refused,
    'recall': 100.0,
    'f1': 200 / (refused + 1),
    'refused': refused,
    'unanswerable': 1,
    'n': 7,
  }
  assert found['coverage'][-1] == pytest.approx(100 * (7 - refused) / 7)
  assert [
    (cell['n'], cell['metrics']['em']['mean'])
    for cell in again['cells']
    if cell['dataset'] == 'one'
  ] == [
    (cell['n'], cell['metrics']['em']['mean'])
    for cell in left_out['cells']
    if cell['dataset'] == 'one'
  ]
  text = (tmp_path / 'eval' / 'report.md').read_text()
  assert '## Refusals' in text
  assert 'plots/risk.png' in text
  page = (tmp_path / 'eval' / 'report.html').read_text()
  assert 'NaN' not in page[page.index('id="data"') : page.index('</script>')]


def test_a_dataset_without_any_answer(root, tmp_path):
  source = tmp_path / 'none.jsonl'
  source.write_text('{"question": "what?", "answerable": false}\n')
  cfg = make_config(root, workdir=str(tmp_path / 'eval'))
  cfg.data = dataclasses.replace(
    cfg.data, sources=(str(source),), unanswerable='refuse'
  )
  with pytest.raises(errors.UserError, match='questions of none has an answer'):
    run(cfg)


class _Enough(Exception):
  pass


def test_a_stopped_evaluation_goes_on_where_it_was(
  whole, root, tmp_path, monkeypatch
):
  answered = []
  append = cell_files.CellFile.append

  def counted(self, answers):
    answered.append(len(answers))
    append(self, answers)

  monkeypatch.setattr(cell_files.CellFile, 'append', counted)
  cfg = make_config(root, workdir=str(tmp_path))
  total = sum(c['n'] for c in whole['cells'])
  for batches in (2, 5):
    left = [batches]

    def enough(number, left=left):
      left[0] -= 1
      if left[0] < 0:
        raise _Enough
      return number

    with pytest.raises(_Enough):
      run(cfg, enough)
    assert not (tmp_path / 'report.json').exists()
  assert 0 < sum(answered) < total
  again = run(cfg)
  assert sum(answered) == total
  assert again['cells'] == whole['cells']
  assert cells_of(tmp_path / 'cells') == cells_of(root / 'eval' / 'cells')
  # Nothing is left to do, and the weights are not even loaded.
  monkeypatch.setattr(eval_models.frozen_base.OpenBase, 'load', None)
  assert run(cfg)['cells'] == whole['cells']


def test_more_values_of_an_axis_add_cells(whole, root, monkeypatch):
  before = cells_of(root / 'eval' / 'cells')
  more = run(make_config(root, num_active=(4, 2, 1)))
  after = cells_of(root / 'eval' / 'cells')
  assert after.items() >= before.items()
  # Two tables, two datasets.
  assert len(after) == len(before) + 4
  assert len(more['cells']) == len(whole['cells']) + 4


def test_runs_base_and_questions_that_moved(
  whole, root, tiny_dir, tmp_path, monkeypatch
):
  """Answers are known by what decides them; nothing is computed again."""
  for name in 'ab':
    shutil.copytree(root / name, tmp_path / 'moved' / f'run-{name}')
  shutil.copytree(tiny_dir, tmp_path / 'other' / 'base')
  shutil.copy(root / 'questions.jsonl', tmp_path / 'asked.jsonl')
  shutil.copytree(root / 'eval' / 'cells', tmp_path / 'eval' / 'cells')
  before = cells_of(tmp_path / 'eval' / 'cells')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    frozen_base.OpenBase, 'load', lambda *_: pytest.fail('the base is loaded')
  )
  cfg = make_config(
    root,
    workdir='eval',
    runs=('moved/run-a', 'moved/run-b'),
    base=config.Base(path='other/base', dtype='', quantize=''),
  )
  cfg.data = dataclasses.replace(cfg.data, sources=('asked.jsonl',))
  found = run(cfg)
  assert {c['table'] for c in found['cells']} == {'', 'run-a', 'run-b'}

  def scores(report):
    return [
      (c['dataset'], c['condition'], c['table'][-1:], c['metrics'])
      for c in report['cells']
    ]

  assert scores(found) == scores(whole)
  # Nothing was to be added, so the files are those of before.
  assert cells_of(tmp_path / 'eval' / 'cells') == before


def test_answers_of_before_go_on_under_a_new_name(root, tmp_path):
  """What is there is kept; only what is missing is computed."""
  shutil.copytree(root / 'a', tmp_path / 'moved')
  settings = {
    'workdir': str(tmp_path / 'eval'),
    'num_passages': (0,),
    'num_active': (4,),
  }
  run(make_config(root, runs=(str(root / 'a'),), **settings))
  cells = tmp_path / 'eval' / 'cells'
  (path,) = cells.glob('one_*_tokens_a_*')
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:3]))
  before = cells_of(cells)
  run(make_config(root, runs=(str(tmp_path / 'moved'),), **settings))
  assert before.items() <= cells_of(cells).items()
  (new,) = cells.glob('one_*_tokens_moved_*')
  assert answers_of(new.read_bytes().splitlines()[1:]) == answers_of(lines[1:])


@pytest.mark.parametrize(
  'change',
  [
    {'seed': 1, 'shuffle_passages': True},
    {'decode': config.Decode(3, 5, False, temperature=0.5)},
    {'num_passages': (1,)},
    {'decode': config.Decode(3, 4, False)},
    {'templates': config.Templates(passage='{index}: {text}\n')},
    {'base': config.Base(dtype='', quantize='int8')},
    {'base': config.Base(dtype='', quantize='int4')},
  ],
)
def test_what_changes_answers_makes_other_cells(root, change):
  def names(**settings):
    cfg = make_config(
      root,
      **{
        'conditions': ('prompt',),
        'retrievers': ('bm25',),
        'num_passages': (2,),
        **settings,
      },
    )
    runs = eval_models.read_runs(cfg.runs)
    [model] = eval_models.open_models(cfg, runs)
    records = evaluate.questions.read(cfg, print)
    groups = evaluate.cell_plan.groups(cfg, model, list(records))
    grid = evaluate.Grid(cfg, model, groups, records)
    grid.open()
    return {file.path.name for file in grid.files.values()}

  assert not names() & names(**change)
  assert names() == names(decode=config.Decode(7, 5, False))
  assert names() == names(seed=1)
  assert names() < names(num_passages=(2, 3))
  assert names() < names(retrievers=('bm25', 'dense'))


def command(root, *arguments, devices=1):
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment['XLA_FLAGS'] = xla_flags.devices(devices)
  return subprocess.run(
    [
      *(sys.executable, '-m', 'vtokens.evaluate'),
      f'--config={root / "config.py"}',
      *arguments,
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


KILLED = """
import os, runpy, signal, sys
left = int(sys.argv.pop(1))
from vtokens.evaluation.asking import cell_files as store
append = store.CellFile.append
def append_or_die(self, answers):
  global left
  append(self, answers)
  left -= 1
  if not left:
    with self.path.open('ab') as file:
      file.write(b'{"id": "cut o')
    os.kill(os.getpid(), signal.SIGKILL)
store.CellFile.append = append_or_die
runpy.run_module('vtokens.evaluate', run_name='__main__')
"""


@pytest.mark.slow
def test_killed_it_goes_on(whole, root, tmp_path):
  arguments = [
    f'--config={root / "config.py"}',
    f'--config.workdir={tmp_path}',
  ]
  killed = subprocess.run(
    [sys.executable, '-c', KILLED, '9', *arguments],
    cwd=ROOT,
    capture_output=True,
    timeout=600,
  )
  assert killed.returncode == -signal.SIGKILL
  done = command(root, f'--config.workdir={tmp_path}')
  assert done.returncode == 0, done.stderr
  assert cells_of(tmp_path / 'cells').items() <= (
    cells_of(root / 'eval' / 'cells').items()
  )
  found = json.loads((tmp_path / 'report.json').read_text())
  assert found['cells'] == whole['cells']
  assert re.search(r'tokens.* EM|average of 2 datasets', done.stdout)


@pytest.mark.slow
def test_three_processes_with_unequal_shards(whole, root, tmp_path):
  """Seven questions in batches of three rows, one row a process."""
  script = tmp_path / 'run.py'
  script.write_text(
    'import runpy, sys, jax\n'
    'jax.distributed.initialize(\n'
    "  f'127.0.0.1:{sys.argv.pop(1)}', 3, int(sys.argv.pop(1)))\n"
    "sys.argv[0] = 'vtokens.evaluate'\n"
    "runpy.run_module('vtokens.evaluate', run_name='__main__')\n"
  )
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, str(script), str(port), str(number)),
        f'--config={root / "config.py"}',
        # Only the first one's directory is written to.
        f'--config.workdir={tmp_path / str(number)}',
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(3)
  ]
  outputs = [process.communicate(timeout=600)[0] for process in processes]
  assert [p.returncode for p in processes] == [0, 0, 0], '\n'.join(outputs)
  found = json.loads((tmp_path / '0' / 'report.json').read_text())
  assert found['cells'] == whole['cells']
  assert found['versions']['device'].startswith('3 x')
  assert not (tmp_path / '1').exists()
  assert not (tmp_path / '2').exists()


@pytest.mark.exhaustive
def test_over_a_mesh_of_eight_devices(whole, root, tmp_path):
  """Batches of three become four rows, over data and fsdp."""
  done = command(
    root,
    '--config.mesh.shape=(2,2,2)',
    f'--config.workdir={tmp_path}',
    devices=8,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'report.json').read_text())
  assert found['versions']['device'].startswith('8 x')
  assert found['cells'] == whole['cells']


def test_names_of_runs(tmp_path, monkeypatch):
  (tmp_path / 'run').mkdir()
  monkeypatch.chdir(tmp_path / 'run')
  assert eval_models.unique_names(['.']) == ['run']
  assert eval_models.unique_names(['../run']) == ['run']
  assert eval_models.unique_names(['org/base', 'x/']) == ['base', 'x']
  assert eval_models.unique_names(['a/x', 'b/x']) == ['a/x', 'b/x']
  with pytest.raises(errors.UserError, match='each only once'):
    eval_models.unique_names(['.', '../run'])


def test_untouched(root, tmp_path):
  done = command(root, '--conditions=untouched', f'--config.workdir={tmp_path}')
  assert done.returncode == 0, done.stderr
  assert re.search(r'untouched: \d+ weight tensors .* SHA-256', done.stdout)
  found = json.loads((tmp_path / 'general.json').read_text())
  assert found['untouched'][0]['tables used'] == 2
  assert found['untouched'][0]['bit for bit the base']


def test_a_table_on_a_base_that_is_quantised_in_another_way(root, tmp_path):
  """What each was, and what it is now, is in report and proof."""
  for name in ('a', 'b'):
    shutil.copytree(root / name, tmp_path / name)
  file = tmp_path / 'a' / 'config.json'
  values = json.loads(file.read_text())
  values['base']['quantize'] = 'int8'
  file.write_text(json.dumps(values))
  rows, metadata = table_file.load(tmp_path / 'a' / 'table.safetensors')
  table_file.save(
    tmp_path / 'a' / 'table.safetensors', rows, {**metadata, 'quantize': 'int8'}
  )
  settings = {
    'workdir': str(tmp_path / 'eval'),
    'runs': (str(tmp_path / 'a'),),
    'conditions': ('tokens', 'untouched'),
    'num_passages': (2,),
    'num_active': (4,),
    'retrievers': ('bm25',),
  }

  def versions(**changes):
    found = run(make_config(root, **{**settings, **changes}))
    [proof] = found['general']['untouched']
    assert proof['bit for bit the base']
    told = {k: v for k, v in found['versions'].items() if 'quantize' in k}
    assert set(told.values()) <= {proof['quantize'], 'int8'}
    return told

  base, table = 'quantize, base ', 'quantize, when table a was trained'
  for method in ('int8', 'none'):
    told = versions(
      **{'base': config.Base(dtype='', quantize='none')}
      if method == 'none'
      else {}
    )
    assert told[table] == 'int8'
    assert {v for k, v in told.items() if k.startswith(base)} == {method}
  both = tuple(str(tmp_path / name) for name in ('a', 'b'))
  with pytest.raises(errors.UserError, match=r'by config\.base\.quantize'):
    run(make_config(root, **{**settings, 'runs': both}))


def test_tasks_alone(root, tmp_path):
  path = tmp_path / 'tasks.jsonl'
  rows = [
    {'id': str(i), 'question': 'x?', 'choices': ['a', 'b'], 'answers': ['a']}
    for i in range(3)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = {
    'conditions': (),
    'data': eval_config.Data(max_prefix_tokens=200, max_suffix_tokens=230),
    'workdir': str(tmp_path / 'out'),
    'tasks': {'t': tasks.Task(source=str(path))},
  }
  found = run(make_config(root, **settings))
  assert [row['n'] for row in found['tasks']] == [3]
  # Ones that are too long or bad are found before anything is written.
  settings['workdir'] = str(tmp_path / 'bad')
  path.write_text(json.dumps(rows[0] | {'question': 'x' * 600}) + '\n')
  with pytest.raises(errors.UserError, match=r'config\.tasks\[t\]: question 0'):
    run(make_config(root, **settings))
  path.write_text('{"id": "1", "question": "x"}\n')
  with pytest.raises(errors.UserError, match=r'tasks\.jsonl:1: choices: miss'):
    run(make_config(root, **settings))
  assert not (tmp_path / 'bad').exists()


def without_runs(root, tiny_dir, **settings) -> eval_config.Config:
  base = config.Base(path=str(tiny_dir), dtype='float32', quantize='')
  return make_config(root, **{'runs': (), 'base': base, **settings})


def test_a_base_alone(whole, root, tiny_dir, tmp_path):
  """Its answers are those that it gives beside trained tables."""
  names = ('closed_book', 'prompt')
  found = run(
    without_runs(root, tiny_dir, conditions=names, workdir=str(tmp_path))
  )
  beside = [c for c in whole['cells'] if c['condition'] in names]
  assert found['cells'] == beside
  assert {c['condition'] for c in beside} == set(names)
  assert (tmp_path / 'report.html').exists()


def test_tasks_and_proof_of_a_base_alone(root, tiny_dir, tmp_path):
  path = tmp_path / 'task.jsonl'
  path.write_text(
    '{"id": "1", "question": "x?", "choices": ["a", "b"], '
    '"answers": ["a", "b"]}\n'
  )
  cfg = without_runs(
    root,
    tiny_dir,
    conditions=('untouched',),
    data=eval_config.Data(max_prefix_tokens=200, max_suffix_tokens=230),
    workdir=str(tmp_path / 'out'),
    tasks={'t': tasks.Task(source=str(path))},
  )
  found = run(cfg)
  assert [row['accuracy'] for row in found['tasks']] == [100.0]
  assert found['untouched'][0]['tables used'] == 0
  assert found['untouched'][0]['bit for bit the base']


def test_cost(root, tmp_path):
  cfg = make_config(
    root,
    workdir=str(tmp_path),
    runs=(str(root / 'a'),),
    conditions=('tokens',),
    num_active=(4,),
    num_passages=(2,),
    retrievers=('bm25',),
    cost=eval_config.Cost(questions=3, repeats=1),
  )
  found = run(cfg)
  rows = found['cost']['rows']
  assert [(r['batch_size'], r['condition']) for r in rows] == [
    (size, name) for size in (1, 3) for name in ('plain', 'tokens a k=4')
  ]
  plain, four = rows[:2]
  assert four['prompt_tokens'] - plain['prompt_tokens'] == 4
  for row in (plain, four):
    assert row['prefill_tokens_per_second'] == pytest.approx(
      row['prompt_tokens'] / row['first_token_seconds']
    )
    for name in ('first_token', 'answer'):
      ratio = row[f'{name}_seconds'] / plain[f'{name}_seconds']
      assert row[f'{name}_extra'] == pytest.approx(ratio - 1)
  assert 'Cost' in (tmp_path / 'report.md').read_text()


class TestBadInput:
  def fails(self, root, match, **settings):
    with pytest.raises(errors.UserError, match=match):
      run(make_config(root, **settings))

  def test_no_questions(self, root, tmp_path):
    empty = tmp_path / 'empty.jsonl'
    empty.write_text('')
    data = dataclasses.replace(make_config(root).data, sources=(str(empty),))
    self.fails(root, r'empty\.jsonl', data=data)

  def test_too_many_tokens(self, root):
    self.fails(root, r'num_active: 5 .* a has 4$', num_active=(5,))

  def test_more_tokens_than_were_trained(self, root, tmp_path, tiny_dir):
    write_run(tmp_path / 'f', tiny_dir, 0, draw='fixed')
    path = tmp_path / 'f' / 'config.json'
    values = json.loads(path.read_text())
    values['virtual_tokens']['num_active'] = 2
    path.write_text(json.dumps(values))
    self.fails(
      root,
      r'num_active: 4 .* f has 2 that were trained',
      runs=(str(tmp_path / 'f'),),
    )

  def test_another_base(self, root, tmp_path):
    tiny_models.save(tmp_path / 'other', seed=1)
    base = config.Base(path=str(tmp_path / 'other'), dtype='float32')
    self.fails(
      root, r'runs: .*a: .* trained on another base .* fingerprint', base=base
    )

  def test_a_table_of_another_width(self, root, tmp_path):
    """Though it names this base."""
    copied = tmp_path / 'w'
    shutil.copytree(root / 'a', copied)
    file = copied / 'table.safetensors'
    rows, metadata = table_file.load(file)
    table_file.save(file, rows[:, 1:], metadata)
    self.fails(
      root, 'runs: .*w/table.* expected a width of', runs=(str(copied),)
    )

  def test_no_run(self, root, tmp_path):
    self.fails(root, 'holds no finished run', runs=(str(tmp_path),))

  def test_missing_retriever(self, root):
    self.fails(
      root,
      r'no question of one .* e5; .* bm25',
      retrievers=('bm25', 'e5'),
    )

  def test_several_retrievers_and_none_named(self, root):
    self.fails(root, 'record q0 has passages of several', retrievers=('',))

  def test_question_too_long(self, root):
    data = dataclasses.replace(make_config(root).data, max_suffix_tokens=20)
    self.fails(root, r'record q0: .* config\.data\.max_suffix_to', data=data)

  def test_rule_of_no_dataset(self, root):
    data = dataclasses.replace(make_config(root).data, rules={'x': 'text'})
    self.fails(root, r"no dataset 'x'; there are one, two", data=data)

  def test_answers_that_a_rule_cannot_compare(self, root):
    data = dataclasses.replace(make_config(root).data, rules={'one': 'number'})
    self.fails(root, 'dataset one, record q0', data=data)

  @pytest.mark.parametrize(
    ('change', 'message'),
    [
      ({'workdir': ''}, 'config.workdir'),
      ({'runs': ()}, 'config.runs'),
      ({'conditions': ('x',)}, 'config.conditions: expected some of closed_b'),
      ({'conditions': ()}, 'config.conditions'),
      ({'num_active': (0,)}, 'config.num_active: expected a tuple of'),
      ({'num_passages': ()}, 'config.num_passages: expected at least one'),
      ({'num_passages': (3, 3)}, 'config.num_passages: expected each value on'),
      ({'retrievers': ()}, 'config.retrievers'),
      ({'data': eval_config.Data()}, 'config.data.sources'),
      ({'decode': config.Decode(top_p=0.0)}, 'config.decode.top_p'),
      ({'decode': config.Decode(temperature=-1.0)}, 'config.decode.temperat'),
      ({'mesh': config.Mesh((0, 1, 1))}, 'config.mesh.shape'),
      (
        {'templates': config.Templates(prompt='x')},
        r'config\.templates\.prompt: expected the placeholder \{question\}',
      ),
      (
        {'data': eval_config.Data(('x',), rules={'d': 'fuzzy'})},
        r'config\.data\.rules: expected .* any of text.*fuzzy',
      ),
      (
        {
          'runs': (),
          'base': config.Base('x', 'float32'),
          'conditions': ('tokens',),
        },
        'config.runs: expected a trained run, for the condition tokens',
      ),
      (
        {'runs': (), 'base': config.Base('x', ''), 'conditions': ('concat',)},
        'config.base.dtype',
      ),
      ({'base': config.Base('x', '', 'int2')}, 'config.base.quantize'),
    ],
  )
  def test_settings(self, root, change, message):
    with pytest.raises(errors.UserError, match=message):
      make_config(root, **change)

  def test_another_program_in_the_same_directory(self, root, tmp_path):
    with locks.sole_writer(tmp_path):
      self.fails(root, 'another program is writing to', workdir=str(tmp_path))

  def test_directory_that_cannot_be_written(self, root, tmp_path):
    (tmp_path / 'file').write_text('')
    path = str(tmp_path / 'file' / 'out')
    self.fails(root, 'config.workdir: cannot write to .*: ', workdir=path)

  def test_an_earlier_report_that_is_damaged(self, root, tmp_path):
    """It is found before the answers are computed."""
    (tmp_path / 'report.json').write_text('[]')
    self.fails(
      root, r'report.json: expected an object, got \[\]', workdir=str(tmp_path)
    )
    assert not (tmp_path / 'cells').exists()

  def test_one_line_and_exit_1(self, root, tmp_path):
    done = command(
      root, '--config.num_active=(9,)', f'--config.workdir={tmp_path}'
    )
    assert done.returncode == 1
    assert (
      done.stderr.strip()
      .splitlines()[-1]
      .startswith('error: config.num_active: 9')
    )
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())
