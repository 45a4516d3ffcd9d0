import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from vtokens.data import built_datasets, formats, sources
from vtokens.data.build import build_command
from vtokens.data.build.build_config import Config, Split, validate
from vtokens.data.checks import BadRecords
from vtokens.host import errors

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLE = ROOT / 'configs/data/example.py'


def row(i, **fields):
  return {
    'id': f'r{i}',
    'question': f'Which number is {i}?',
    'answers': [str(i)],
    'passages': {
      'bm25': [{'text': f'{i} or {j}', 'score': -j} for j in range(4)],
      'gold': [{'text': f'It is {i}.'}],
    },
    **fields,
  }


def write(path, rows):
  path.write_text(
    ''.join(f'{r if isinstance(r, str) else json.dumps(r)}\n' for r in rows)
  )
  return str(path)


def config(tmp_path, sources, out='out', split=None, **fields):
  return Config(
    name='numbers',
    out=str(tmp_path / out),
    splits={'train': Split(sources=tuple(sources), **(split or {}))},
    **fields,
  )


def build_all(cfg):
  """The records by id, and build.json's account of the split."""
  validate(cfg)
  path = build_command.build(cfg)
  found = built_datasets.RecordStore(path, 'train')
  values = json.loads(pathlib.Path(path, 'build.json').read_text())
  assert len({record.id for record in found}) == len(found)
  return {r.id: r for r in found}, values['splits']['train']


def run(*args, **env):
  return subprocess.run(
    [sys.executable, '-m', 'vtokens.data.build', *map(str, args)],
    env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
    capture_output=True,
    text=True,
  )


def shards(out):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in pathlib.Path(out).rglob('*.array_record-?????-of-?????')
  }


def test_records_come_back_as_they_were_read(tmp_path):
  source = write(tmp_path / 'a.jsonl', map(row, range(20)))
  found, account = build_all(config(tmp_path, [source]))
  assert found == {r.id: r for r in formats.read_all([source])}
  assert account['datasets'] == {'a': 20}
  assert len(account['shards']) == 1


def test_processes_build_the_same_bytes(tmp_path):
  """Whatever their hash seed and directories are."""
  found = []
  for seed in ('1', '2'):
    out = tmp_path / f'out{seed}'
    done = run(
      f'--config={EXAMPLE}',
      f'--config.out={out}',
      '--config.num_shards=2',
      PYTHONHASHSEED=seed,
    )
    assert done.returncode == 0, done.stderr
    assert 'train: 3,000 records' in done.stdout
    found.append(shards(out))
  assert len(found[0]) == 6
  assert found[0] == found[1]


def test_shards_by_size(tmp_path):
  rows = [row(i, passages=['x' * (1 << 20)] * 2) for i in range(70)]
  source = write(tmp_path / 'a.jsonl', rows)
  found, account = build_all(config(tmp_path, [source]))
  assert len(found) == 70
  # 140 MiB of at least 64 each.
  assert [shard['num_records'] for shard in account['shards']] == [35, 35]


def test_passages_are_cut_and_counted(tmp_path):
  source = write(tmp_path / 'a.jsonl', map(row, range(3)))
  found, account = build_all(config(tmp_path, [source], max_passages=3))
  passages = found['r1'].passages
  assert [p.text for p in passages['bm25']] == ['1 or 0', '1 or 1', '1 or 2']
  assert len(passages['gold']) == 1
  assert account['passages_cut'] == 3


def test_bad_records_are_counted_and_listed(tmp_path):
  first = write(tmp_path / 'a.jsonl', [row(0), '{', row(1)])
  second = write(tmp_path / 'b.jsonl', [row(2), row(2, question='Again?')])
  cfg = config(tmp_path, [first, second])
  with pytest.raises(errors.UserError, match=r'a\.jsonl:2: line: found no'):
    build_command.build(cfg)
  assert not list((tmp_path / 'out').iterdir())
  cfg.on_bad_record = 'skip'
  found, account = build_all(cfg)
  assert set(found) == {'r0', 'r1', 'r2'}
  assert found['r2'].question == 'Which number is 2?'
  assert account['skipped'] == 2
  listed = next((tmp_path / 'out').rglob('skipped-train.txt')).read_text()
  assert [line.split(': ')[0] for line in listed.splitlines()] == [
    f'{first}:2',
    f'{second}:2',
  ]


def test_folders_and_shards(tmp_path):
  """Equal ids in files of equal names, and a data set in two files."""
  sources = []
  for name, rows in (
    ('nq/train.jsonl', [row(0), row(1)]),
    ('tqa/train.jsonl', [row(0, question='Which?')]),
    ('squad-00000-of-00002.jsonl', [row(2)]),
    ('squad-00001-of-00002.jsonl', [row(3)]),
  ):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    sources.append(write(tmp_path / name, rows))
  bytes_of = []
  for out, given in (('a', sources), ('b', sources[::-1])):
    found, account = build_all(config(tmp_path, given, out=out))
    bytes_of.append([shard['sha256'] for shard in account['shards']])
    assert {i: r.dataset for i, r in found.items()} == {
      'nq/r0': 'nq',
      'nq/r1': 'nq',
      'tqa/r0': 'tqa',
      'r2': 'squad',
      'r3': 'squad',
    }
    assert account['datasets'] == {'nq': 2, 'tqa': 1, 'squad': 2}
  assert bytes_of[0] == bytes_of[1]


def test_control_characters_keep_the_expected_size(tmp_path):
  rows = [row(0), row(1, question='Who painted \x91The Ferry\x92?')]
  source = write(tmp_path / 'a.jsonl', rows)
  found, account = build_all(
    config(tmp_path, [source], split={'expected_records': 2})
  )
  assert found['r1'].question == 'Who painted \u2018The Ferry\u2019?'
  assert account['notes'] == {
    'rows with control characters, which were replaced': 1
  }


def test_unanswerable_questions_are_left_out(tmp_path):
  none = 'No Answer Present.'
  source = write(
    tmp_path / 'a.jsonl',
    [row(0), row(1, answers=[none]), row(2, answers=[none, 'two'])],
  )
  found, account = build_all(
    config(tmp_path, [source], split={'drop_answers': (none,)})
  )
  assert set(found) == {'r0', 'r2'}
  assert account['no_answer'] == 1


def test_unanswerable_questions_can_be_kept(tmp_path):
  source = write(
    tmp_path / 'a.jsonl', [row(0), row(1, answers=[], answerable=False)]
  )
  found, account = build_all(config(tmp_path, [source]))
  assert set(found) == {'r0'}
  cfg = config(tmp_path / 'kept', [source], split={'unanswerable': 'keep'})
  found, account = build_all(cfg)
  assert not found['r1'].answers
  assert account['no_answer'] == 0
  # Who reads them says what becomes of them.
  [path] = (tmp_path / 'kept').rglob('build.json')
  built = [f'records:{path.parent}:train']
  report = BadRecords()
  assert [r.id for r in sources.read(built, report=report)] == ['r0']
  assert report.counts == {'unanswerable': 1}
  report = BadRecords(on_unanswerable='keep')
  read = {r.id: r.answers for r in sources.read(built, report=report)}
  assert read == {'r0': found['r0'].answers, 'r1': ()}
  with pytest.raises(errors.UserError, match='record r1: answers: the source'):
    list(sources.read(built, report=BadRecords(on_unanswerable='error')))


def test_a_draw_depends_on_ids_and_seed_alone(tmp_path):
  rows = [row(i) for i in range(300)]
  source = write(tmp_path / 'a.jsonl', rows)
  backwards = write(tmp_path / 'b.jsonl', rows[::-1])
  drawn = {}
  for name, path, seed in (
    ('first', source, 0),
    ('backwards', backwards, 0),
    ('other', source, 1),
  ):
    found, account = build_all(
      config(
        tmp_path,
        [path],
        out=name,
        split={'max_records': 100, 'seed': seed, 'dataset': 'n'},
      )
    )
    assert account['not_drawn'] == 200
    drawn[name] = set(found)
  assert shards(tmp_path / 'first') == shards(tmp_path / 'backwards')
  assert len(drawn['first']) == len(drawn['other']) == 100
  # About a third of each other draw; 5.4 is the standard deviation.
  assert 10 < len(drawn['first'] & drawn['other']) < 57
  assert drawn['first'] != {f'r{i}' for i in range(100)}


def test_fewer_than_the_draw_wants_are_all_kept(tmp_path):
  source = write(tmp_path / 'a.jsonl', map(row, range(5)))
  found, account = build_all(
    config(tmp_path, [source], split={'max_records': 5})
  )
  assert len(found) == 5 and account['not_drawn'] == 0


@pytest.mark.parametrize(
  ('split', 'fields', 'message'),
  [
    (
      {'expected_records': 4},
      {},
      r'splits\[train\]: 3 records, expected_records says 4 \(none left out\)',
    ),
    (
      {'expected_records': 3, 'drop_answers': ('1',)},
      {},
      r'2 records, .* says 3 \(1 without an answer left out\)',
    ),
    ({}, {'num_shards': 4}, '3 records, expected at least 4'),
    ({'drop_answers': ('0', '1', '2')}, {}, '0 records, expected at least 1'),
  ],
)
def test_another_number_of_records(tmp_path, split, fields, message):
  source = write(tmp_path / 'a.jsonl', map(row, range(3)))
  with pytest.raises(errors.UserError, match=message):
    build_command.build(config(tmp_path, [source], split=split, **fields))
  assert not list((tmp_path / 'out').iterdir())


def test_what_is_built_is_kept_or_refused(tmp_path, capsys):
  source = write(tmp_path / 'a.jsonl', map(row, range(3)))
  cfg = config(tmp_path, [source])
  path = build_command.build(cfg)
  before = {
    file: file.stat().st_mtime_ns for file in pathlib.Path(path).iterdir()
  }
  # The same file elsewhere, and what does not change the records.
  (tmp_path / 'moved').mkdir()
  moved = write(tmp_path / 'moved/a.jsonl', map(row, range(3)))
  capsys.readouterr()
  again = config(tmp_path, [moved], split={'expected_records': 3})
  assert build_command.build(again) == path
  assert 'kept' in capsys.readouterr().out
  for other, difference in (
    (config(tmp_path, [source], max_passages=2), 'max_passages: 100 there, 2'),
    (config(tmp_path, [source], split={'seed': 1}), 'train.seed: 0 there, 1'),
    (
      config(tmp_path, [write(tmp_path / 'b.jsonl', [row(1)])]),
      r'train.sources: \[.*a\.jsonl.* there, \[.*b\.jsonl.* now',
    ),
  ):
    with pytest.raises(errors.UserError, match=difference):
      build_command.build(other)
  after = {
    file: file.stat().st_mtime_ns for file in pathlib.Path(path).iterdir()
  }
  assert after == before
  next(iter(pathlib.Path(path).glob('*-of-00001'))).write_bytes(b'')
  with pytest.raises(errors.UserError, match='0 bytes, expected'):
    build_command.build(cfg)


def test_a_directory_that_is_not_finished_is_not_touched(tmp_path):
  cfg = config(tmp_path, [write(tmp_path / 'a.jsonl', [row(1)])])
  left = tmp_path / 'out/retrieval_qa/numbers/1.0.0'
  left.mkdir(parents=True)
  (left / 'mine.txt').write_text('mine')
  with pytest.raises(errors.UserError, match='expected a finished dataset'):
    build_command.build(cfg)
  assert (left / 'mine.txt').exists()


def test_sources_that_are_not_there(tmp_path):
  cfg = config(tmp_path, [str(tmp_path / 'absent.jsonl')])
  with pytest.raises(
    errors.UserError, match=r'absent\.jsonl: cannot be read: FileNotFound'
  ):
    build_command.build(cfg)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
)
def test_interrupted_builds_leave_nothing_that_looks_finished(tmp_path, number):
  source = write(tmp_path / 'a.jsonl', map(row, range(6_000)))
  file = tmp_path / 'config.py'
  file.write_text(
    'from vtokens.data.build.build_config import Config, Split\n'
    'def get_config():\n'
    f"  return Config(name='numbers', out={str(tmp_path / 'out')!r},\n"
    f"    splits={{'train': Split(sources=({source!r},))}})\n"
  )
  out = tmp_path / 'out'
  process = subprocess.Popen(
    [sys.executable, '-m', 'vtokens.data.build', f'--config={file}'],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    # A shell's background jobs, and so their children, ignore Ctrl-C.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  # tfds's directory appears just before the first record is read.
  while not list(out.glob('.building-*/retrieval_qa/*/*')):
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.01)
  process.send_signal(number)
  output, _ = process.communicate()
  killed = number == signal.SIGKILL
  assert process.returncode == (-number if killed else 128 + number)
  assert (f'{number.name}: stopped' in output) != killed
  assert 'Traceback' not in output
  assert not (out / 'retrieval_qa').exists()
  with pytest.raises(errors.UserError, match='no dataset of records here'):
    built_datasets.RecordStore(str(out / 'retrieval_qa/numbers'), 'train')
  assert len(list(out.iterdir())) == (1 if killed else 0)

  done = run(f'--config={file}')
  assert done.returncode == 0, done.stderr
  assert ('left by a killed program' in done.stdout) == killed
  assert (
    len(built_datasets.RecordStore(str(out / 'retrieval_qa/numbers'))) == 6_000
  )


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('name', 'NQ', 'config.name: expected a small letter'),
    ('name', '', 'config.name: expected a small letter'),
    ('out', 'gs://bucket/data', 'config.out: expected a local or mounted'),
    ('splits', {}, 'config.splits: expected at least one split'),
    ('splits', {'all': Split(('a',))}, r'config.splits\[all\]: expected'),
    ('splits', {'dev': Split()}, r'splits\[dev\].sources: expected some'),
    (
      'splits',
      {'dev': Split(('a',), max_records=-1)},
      r'splits\[dev\].max_records: expected an integer >= 0',
    ),
    ('splits', {'dev': Split('a')}, r'splits\[dev\].sources: expected a tuple'),
    ('max_passages', -1, 'config.max_passages: expected an integer >='),
    ('on_bad_record', 'drop', 'config.on_bad_record: expected one of error'),
    ('num_shards', -1, 'config.num_shards: expected an integer from'),
    ('runner', 'flink', 'config.runner: expected one of local, beam'),
    ('beam_options', ('--x',), 'config.beam_options: expected none unless'),
  ],
)
def test_bad_configs(field, value, message):
  cfg = Config(name='nq', splits={'train': Split(('a',))})
  validate(cfg)
  setattr(cfg, field, value)
  with pytest.raises(errors.UserError, match=message):
    validate(cfg)


def test_directory_that_cannot_be_written(tmp_path):
  path = write(tmp_path / 'a.jsonl', [row(0)])
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    errors.NotWrittenError,
    match=r'^/.*/file/out: cannot be written: Not a directory$',
  ):
    build_command.build(config(tmp_path, [path], out='file/out'))
