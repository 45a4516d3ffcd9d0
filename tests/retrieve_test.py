"""Tests of vtokens.retrieve: the program as it is run."""

import gzip
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest
import retrieval_data

from vtokens import retrieve
from vtokens.data import formats, records
from vtokens.host import errors
from vtokens.retrieval import retrieval_config

ROOT = pathlib.Path(__file__).parents[1]

# Ends the process by SIGKILL around the n-th file or directory that is put in
# its place: just before for even n, just after for odd n.
KILLED = """
import os, runpy, signal, sys
left, replace = int(sys.argv.pop(1)), os.replace
def replace_or_die(*args, **kwargs):
  global left
  left -= 1
  if left == 0 and {n} % 2 == 0:
    os.kill(os.getpid(), signal.SIGKILL)
  replace(*args, **kwargs)
  if left == 0:
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_or_die
runpy.run_module('vtokens.retrieve', run_name='__main__')
"""

CONFIG = """
from vtokens.retrieval import retrieval_config as config

def get_config():
  return config.Config(
    workdir={workdir!r},
    index_dir={index_dir!r},
    top_k=20,
    corpus=config.Corpus(paths=({corpus!r},), shard_size=50),
    questions=config.Questions(paths=({questions!r},), chunk_size=8),
    retrievers={{
      'bm25': config.Retriever(),
      'bm25-plain': config.Retriever(
        bm25=config.BM25(stemmer='none', stopwords='none', k1=1.5, b=0.75)
      ),
    }},
  )
"""


class Case:
  """A corpus, questions, and a config over them."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    self.corpus = retrieval_data.passages(180)
    self.questions = retrieval_data.questions(self.corpus, 30)
    self.questions[0]['passages'] = {
      'gold': [{'id': 'p3', 'title': 'T', 'text': 'Gold.'}],
      'other': [{'id': 'x', 'title': '', 'text': 'Other.', 'score': -1.5}],
    }
    self.corpus_path = retrieval_data.write(
      directory / 'corpus.jsonl', self.corpus
    )
    self.questions_path = retrieval_data.write(
      directory / 'questions.jsonl', self.questions
    )

  def config(self, workdir='work', index_dir='index') -> str:
    path = self.directory / f'{workdir}-{index_dir}.py'
    path.write_text(
      CONFIG.format(
        workdir=str(self.directory / workdir),
        index_dir=str(self.directory / index_dir),
        corpus=self.corpus_path,
        questions=self.questions_path,
      )
    )
    return str(path)

  def files(self, workdir='work') -> dict[str, bytes]:
    return {
      name: (self.directory / workdir / name).read_bytes()
      for name in ('records.jsonl.gz', 'recall.json')
    }


def run(*args, program=('-m', 'vtokens.retrieve')):
  return subprocess.run(
    [sys.executable, *program, *args],
    cwd=ROOT,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT) + os.pathsep + os.environ.get('PYTHONPATH', ''),
    },
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def case(tmp_path_factory) -> Case:
  """Run once, to its end."""
  made = Case(tmp_path_factory.mktemp('retrieve'))
  result = run('--config', made.config())
  assert result.returncode == 0, result.stderr
  made.stdout = result.stdout
  return made


def test_the_records_are_read_back(case):
  path = case.directory / 'work' / 'records.jsonl.gz'
  found = formats.read_all([str(path)])
  assert [r.id for r in found] == [q['id'] for q in case.questions]
  assert [r.answers for r in found] == [
    tuple(q['answers']) for q in case.questions
  ]
  assert list(found[0].passages) == ['gold', 'other', 'bm25', 'bm25-plain']
  assert found[0].passages['other'] == (
    records.Passage(id='x', title='', text='Other.', score=-1.5),
  )
  by_id = {row['id']: row for row in case.corpus}
  for record in found:
    assert list(record.passages)[-2:] == ['bm25', 'bm25-plain']
    for name in ('bm25', 'bm25-plain'):
      ranked = record.passages[name]
      assert 0 < len(ranked) <= 20
      assert len({p.id for p in ranked}) == len(ranked)
      scores = [p.score for p in ranked]
      assert scores == sorted(scores, reverse=True)
      for passage in ranked:
        row = by_id[passage.id]
        assert (passage.title, passage.text) == (row['title'], row['text'])
  firsts = {r.passages['bm25'][0].id for r in found}
  assert len(firsts) > 20  # Not the same for every question.


def test_recall_is_that_of_the_records(case):
  path = case.directory / 'work' / 'records.jsonl.gz'
  recall = json.loads((case.directory / 'work' / 'recall.json').read_text())
  assert list(recall) == ['one', 'two']
  for dataset, by_retriever in recall.items():
    own = [r for r in formats.read_all([str(path)]) if r.dataset == dataset]
    for name, values in by_retriever.items():
      assert set(values) == {'n', 'recall@1', 'recall@5', 'recall@20'}
      assert values['n'] == len(own)
      for k in (1, 5, 20):
        # Words of letters only, so that splitting is enough.
        hits = [
          any(
            r.answers[0].lower() in p.text.lower().rstrip('.').split()
            for p in r.passages[name][:k]
          )
          for r in own
        ]
        assert values[f'recall@{k}'] == sum(hits) / len(hits)
      assert 0 < values['recall@1'] < values['recall@20']


def test_the_bytes_are_plain(case):
  data = case.files()['records.jsonl.gz']
  assert data[4:8] == bytes(4)  # No time.
  assert data[3] == 0  # No name.
  first = json.loads(gzip.decompress(data).splitlines()[0])
  assert list(first) == ['id', 'dataset', 'question', 'answers', 'passages']
  assert list(first['passages']['bm25'][0]) == ['id', 'title', 'text', 'score']
  assert 'score' not in first['passages']['gold'][0]


def test_what_is_printed(case):
  assert 'bm25: BM25, k1 0.9, b 0.4, stemmer english' in case.stdout
  assert 'index of 180 passages' in case.stdout
  assert 'recall@1' in case.stdout
  assert 'records.jsonl.gz' in case.stdout


def test_a_finished_run_is_not_done_again(case):
  before = case.files()
  index = case.directory / 'index/bm25/complete.json'
  written = index.stat().st_mtime_ns
  result = run('--config', case.config())
  assert result.returncode == 0, result.stderr
  assert case.files() == before
  assert index.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
  'step', [6, pytest.param(11, marks=pytest.mark.exhaustive)]
)
def test_killed_again_and_again_it_ends_with_the_same(case, step):
  workdir, index_dir = f'killed{step}', f'killed-index{step}'
  path = case.config(workdir, index_dir)
  kills = 0
  while True:
    result = run(
      str(step),
      '--config',
      path,
      program=('-c', KILLED.replace('{n}', str(kills))),
    )
    if result.returncode != -signal.SIGKILL:
      break
    kills += 1
    assert kills < 60
  assert result.returncode == 0, result.stderr
  assert kills >= 3
  assert case.files(workdir) == case.files()
  leftovers = [
    p
    for name in (workdir, index_dir)
    for p in (case.directory / name).rglob('*partial*')
  ]
  assert not leftovers


def test_beam_gives_the_same_bytes(case):
  path = case.config('beam', 'beam-index')
  result = run(
    '--config',
    path,
    '--config.execution.runner=beam',
    '--config.execution.beam_options='
    "('--direct_running_mode=multi_processing','--direct_num_workers=2')",
  )
  assert result.returncode == 0, result.stderr
  assert case.files('beam') == case.files()


def test_other_cuts_give_the_same_passages(case):
  path = case.config('cut', 'cut-index')
  result = run(
    '--config',
    path,
    '--config.corpus.shard_size=7',
    '--config.questions.chunk_size=100',
    '--config.compress=false',
  )
  assert result.returncode == 0, result.stderr
  assert (case.directory / 'cut/records.jsonl').read_bytes() == (
    gzip.decompress(case.files()['records.jsonl.gz'])
  )


def test_a_stale_index_is_refused_and_can_be_rebuilt(case):
  path = case.config('stale', 'stale-index')
  assert run('--config', path).returncode == 0
  other = (
    '--config.corpus.shard_size=90',
    f'--config.workdir={case.directory}/stale2',
  )
  result = run('--config', path, *other)
  assert result.returncode == 1
  assert 'shard_size: 50 there, 90 now' in result.stderr
  assert 'Traceback' not in result.stderr
  result = run('--config', path, *other, '--config.on_stale_index=rebuild')
  assert result.returncode == 0, result.stderr
  assert case.files('stale2')['recall.json'] == case.files()['recall.json']


def test_a_work_directory_of_another_run_is_refused(case):
  result = run('--config', case.config(), '--config.top_k=7')
  assert result.returncode == 1
  assert 'top_k: 20 there, 7 now' in result.stderr
  assert case.files()


def test_another_chunk_size_changes_nothing(case):
  before = case.files()
  result = run('--config', case.config(), '--config.questions.chunk_size=7')
  assert result.returncode == 0, result.stderr
  assert 'config.questions.chunk_size: ' in result.stdout
  assert case.files() == before


def test_directories_that_cannot_be_written(case, tmp_path):
  (tmp_path / 'file').write_text('')
  for field in ('workdir', 'index_dir'):
    path = tmp_path / 'file' / field
    other = 'index_dir' if field == 'workdir' else 'workdir'
    result = run(
      '--config',
      case.config(),
      f'--config.{field}={path}',
      f'--config.{other}={tmp_path / other}',
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
      f'error: {path}: cannot be written: Not a directory. Once it can, run '
      'again: python -m vtokens.retrieve '
    )
    assert 'Traceback' not in result.stderr
  # Found before the index was made.
  assert not list((tmp_path / 'index_dir').glob('*/complete.json'))


def test_a_damaged_index_is_refused(case):
  path = case.config('damaged', 'damaged-index')
  assert run('--config', path).returncode == 0
  data = case.directory / ('damaged-index/bm25/shards/00001/data.csc.index.npy')
  data.write_bytes(data.read_bytes()[:-1])
  result = run('--config', path)
  assert result.returncode == 1
  assert 'damaged: shards/00001/data.csc.index.npy ' in result.stderr
  assert '--config.on_stale_index=rebuild' in result.stderr


def flip(path: pathlib.Path) -> None:
  """Changes the last bit of a file."""
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


def test_one_flipped_bit_is_refused_in_an_index_and_mended_elsewhere(case):
  path = case.config('flipped', 'flipped-index')
  cfg = runpy.run_path(path)['get_config']()
  first = retrieve.retrieve(cfg)
  index = case.directory / 'flipped-index'
  files = [
    p
    for name in ('corpus', 'bm25')
    for p in sorted((index / name).rglob('*'))
    if p.is_file() and p.stat().st_size and '00000' not in p.parts
  ]
  assert len(files) > 12
  for file in files:
    data = file.read_bytes()
    flip(file)
    with pytest.raises(errors.UserError, match='flipped-index'):
      retrieve.retrieve(cfg)
    file.write_bytes(data)
  workdir = case.directory / 'flipped'
  for name in (
    'hits/bm25/00001.npz',
    'parts/00002.ranks.json',
    'records.jsonl.gz',
  ):
    flip(workdir / name)
    assert retrieve.retrieve(cfg) == first
    assert case.files('flipped') == case.files()
  # And what is remembered of the corpus files.
  (index / 'hashes.json').write_text('{"x": 3}')
  assert retrieve.retrieve(cfg) == first


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c.retrievers.clear(), 'config.retrievers: '),
    (
      lambda c: c.retrievers.update(gold=retrieval_config.Retriever()),
      "config.retrievers: 'gold' ",
    ),
    (
      lambda c: c.retrievers.update({'a/b': retrieval_config.Retriever()}),
      "config.retrievers: 'a/b' ",
    ),
    (
      lambda c: c.retrievers.update(d=retrieval_config.Retriever(kind='dense')),
      r'config.retrievers\[d\].dense.model: ',
    ),
    (
      lambda c: c.retrievers.update(d=retrieval_config.Retriever(kind='bm52')),
      r'config.retrievers\[d\].kind: .*bm25, dense',
    ),
    (
      lambda c: setattr(c.retrievers['b'].bm25, 'b', 1.5),
      r'config.retrievers\[b\].bm25.b: .* 0 to 1',
    ),
    (
      lambda c: setattr(c.retrievers['b'].bm25, 'token_pattern', '('),
      r'bm25.token_pattern: ',
    ),
    (
      lambda c: setattr(c.corpus, 'shard_size', 0),
      'config.corpus.shard_size: .* 1',
    ),
    (
      lambda c: setattr(c, 'index_dir', 'w'),
      'config.index_dir: ',
    ),
    (
      lambda c: setattr(c, 'workdir', 'gs://bucket/w'),
      'config.workdir: ',
    ),
    (
      lambda c: setattr(c.execution, 'beam_options', ('--x',)),
      'config.execution.beam_options: ',
    ),
    (
      lambda c: setattr(c, 'top_k', '3'),
      'config.top_k: ',
    ),
  ],
)
def test_bad_settings_are_refused(change, message):
  cfg = retrieval_config.Config(
    workdir='w',
    index_dir='i',
    corpus=retrieval_config.Corpus(paths=('c',)),
    questions=retrieval_config.Questions(paths=('q',)),
    retrievers={'b': retrieval_config.Retriever()},
  )
  retrieval_config.validate(cfg)
  change(cfg)
  with pytest.raises(Exception, match=message):
    retrieval_config.validate(cfg)


def test_passages_of_the_same_name_are_refused(case):
  path = retrieval_data.write(
    case.directory / 'clash.jsonl',
    [{**case.questions[1], 'passages': {'bm25': ['Text.']}}],
  )
  result = run(
    '--config', case.config('clash'), f"--config.questions.paths=('{path}',)"
  )
  assert result.returncode == 1
  assert re.search(r"config\.retrievers: record .* 'bm25'", result.stderr)
  assert not (case.directory / 'clash').exists()


def test_what_is_left_out_is_said(case):
  corpus = retrieval_data.write(
    case.directory / 'bad_corpus.jsonl', [*case.corpus, {'id': 'x'}]
  )
  questions = retrieval_data.write(
    case.directory / 'unknown.jsonl',
    [*case.questions, {'id': 'u', 'question': 'Qqq?', 'answers': ['x']}],
  )
  result = run(
    '--config',
    case.config('left', 'left-index'),
    f"--config.corpus.paths=('{corpus}',)",
    f"--config.questions.paths=('{questions}',)",
    '--config.corpus.on_bad_record=skip',
  )
  assert result.returncode == 0, result.stderr
  assert 'config.corpus: skipped 1 bad passages, see' in result.stdout
  assert 'bm25: 1 questions have no passage' in result.stdout
  found = formats.read_all([str(case.directory / 'left' / 'records.jsonl.gz')])
  assert found[-1].passages['bm25'] == ()


def test_questions_that_cannot_be_read_stop_it(case):
  path = retrieval_data.write(
    case.directory / 'bad.jsonl', [*case.questions[:2], {'question': 'x'}]
  )
  arguments = (
    '--config',
    case.config('bad'),
    f"--config.questions.paths=('{path}',)",
  )
  result = run(*arguments)
  assert result.returncode == 1
  assert 'bad.jsonl:3: answers or target: missing' in result.stderr
  result = run(*arguments, '--config.questions.on_bad_record=skip')
  assert result.returncode == 0, result.stderr
  assert 'skipped 1 bad records' in result.stdout
  lines = (case.directory / 'bad/skipped_questions.txt').read_text()
  assert lines.count('\n') == 1 and 'bad.jsonl:3' in lines


def test_help():
  result = run('--help')
  assert result.returncode == 0
  assert 'configs/retrieve/example.py' in result.stdout


def test_the_example(tmp_path):
  result = run(
    '--config',
    'configs/retrieve/example.py',
    f'--config.workdir={tmp_path}/work',
    f'--config.index_dir={tmp_path}/index',
  )
  assert result.returncode == 0, result.stderr
  recall = json.loads((tmp_path / 'work' / 'recall.json').read_text())
  for values in recall.values():
    assert values['bm25']['recall@5'] > 0.7


@pytest.mark.parametrize(
  'path', sorted(ROOT.glob('configs/retrieve/*.py')), ids=lambda p: p.stem
)
def test_configs_are_valid(path):
  namespace: dict = {'__file__': str(path)}
  exec(path.read_text(), namespace)
  retrieval_config.validate(namespace['get_config']())
