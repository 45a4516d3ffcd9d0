"""The token cache next to encoding each piece directly."""

import dataclasses
import json
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import time

import file_limit
import numpy as np
import pytest
import tiny_models

from vtokens import config
from vtokens.data import leaks, token_cache, token_set
from vtokens.data.checks import BadRecords
from vtokens.data.containment import Matcher
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.data.records import GOLD, Passage, Record
from vtokens.host import checksums, errors, writers
from vtokens.models.tokenizers.tokenizer import load_tokenizer


def passage(i: int, text: str) -> Passage:
  return Passage(id=f'p{i}', title='Title' * (i % 2), text=text)


def record(i: int) -> Record:
  bm25 = tuple(passage(j, f'{i} and {j} words') for j in range(i % 4))
  return Record(
    id=f'réc {i}',
    dataset='odd' if i % 2 else 'even',
    question=f'question {i}?',
    answers=tuple(f'{j} words' for j in range(1, 2 + i % 3)),
    passages={
      'bm25': bm25,
      'dense': (passage(9, 'no such thing.'),),
      GOLD: bm25[1:2],
    },
  )


RECORDS = [record(i) for i in range(11)]


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  tiny_models.save_tokenizer(directory)
  return PromptEncoder(load_tokenizer(directory), config.Templates())


def tokenize(records, encoder, directory, *, depth=9, identity=None):
  return token_cache.TokenCache(directory, encoder, depth).open(
    iter(records),
    BadRecords(),
    identity=identity or {'data': 'abc'},
    label='tokenizing',
  )


def assert_same(found: token_set.TokenSet, records, encoder, depth=9):
  assert len(found) == len(records)
  for i, record in enumerate(records):
    assert found.id(i) == record.id
    assert found.datasets[found.dataset[i]] == record.dataset
    prompt = encoder.prompt(record.question, name='prompt', chat=False)
    np.testing.assert_array_equal(found.prompt(i), prompt)
    assert found.prompt_len(i) == len(prompt)
    answers = encoder.answers(record.answers, chat=False)
    assert found.answer_lens(i).tolist() == [len(a) for a in answers]
    for j, ids in enumerate(answers):
      np.testing.assert_array_equal(found.answer(i, j), ids)
      assert found.answer_len(i, j) == len(ids)
    shown = [
      (name, passage)
      for name, ranked in record.passages.items()
      for passage in ranked[:depth]
    ]
    slots = found.slots(i)
    assert [found.retrievers[r] for r in slots.retriever] == [
      name for name, _ in shown
    ]
    matcher = Matcher(record.answers)
    assert slots.has_answer.tolist() == [
      matcher.contains(p.text) for _, p in shown
    ]
    golds = record.passages[GOLD]
    assert slots.is_gold.tolist() == [p in golds for _, p in shown]
    pieces = encoder.passages([passage for _, passage in shown])
    for slot, piece in enumerate(pieces):
      kept = found.passage(i, slot)
      for field in ('body', 'end', 'last_end'):
        ids = getattr(kept, field)
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, getattr(piece, field))
      assert found.passage_lens(i, slot) == (
        len(piece.body),
        len(piece.end),
        len(piece.last_end),
      )


@pytest.mark.parametrize('chunk', [1, 3, 2048])
def test_what_is_kept_is_what_encoding_gives(
  encoder, tmp_path, monkeypatch, chunk
):
  monkeypatch.setattr(token_cache, 'CHUNK_RECORDS', chunk)
  found = tokenize(RECORDS, encoder, tmp_path)
  assert_same(found, RECORDS, encoder)
  assert_same(pickle.loads(pickle.dumps(found)), RECORDS, encoder)
  np.testing.assert_array_equal(
    found.question_key, leaks.hash_questions([r.question for r in RECORDS])
  )
  assert found.slots(3).has_answer.any() and found.slots(3).is_gold.any()
  # Nothing is left of the partial files.
  assert {p.suffix for p in tmp_path.iterdir()} == {'', '.lock'}


def test_lengths_over_all_records(encoder, tmp_path):
  found = tokenize(RECORDS, encoder, tmp_path)
  prompts, answers, owners = found.all_lens()
  assert prompts.tolist() == [found.prompt_len(i) for i in range(len(RECORDS))]
  for i in range(len(RECORDS)):
    assert answers[owners == i].tolist() == found.answer_lens(i).tolist()


def test_depth_limits_each_retriever(encoder, tmp_path):
  found = tokenize(RECORDS, encoder, tmp_path, depth=2)
  assert_same(found, RECORDS, encoder, depth=2)


def test_it_is_made_once(encoder, tmp_path):
  first = tokenize(RECORDS, encoder, tmp_path)

  def never():
    raise AssertionError('read again')
    yield

  again = tokenize(never(), encoder, tmp_path)
  np.testing.assert_array_equal(first.dataset, again.dataset)
  assert_same(again, RECORDS, encoder)


def _cut(directory):
  path = directory / 'tokens.npy'
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(directory):
  path = directory / 'tokens.npy'
  path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))


def _flip(name, at):
  def damage(directory):
    content = bytearray((directory / name).read_bytes())
    content[at] ^= 1
    (directory / name).write_bytes(content)

  return damage


def _write(text):
  return lambda directory: (directory / 'meta.json').write_text(text)


def _rename_dataset(directory):
  text = (directory / 'meta.json').read_text()
  _write(text.replace('"even"', '"evan"'))(directory)


def _as_of_an_earlier_version(directory):
  meta = json.loads((directory / 'meta.json').read_text())
  for key in ('format', 'files', 'sha256_of_the_rest'):
    del meta[key]
  _write(json.dumps(meta))(directory)


@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (_cut, 'tokens.npy has '),
    (_zero, 'tokens.npy has changed'),
    (_flip('tokens.npy', -1), 'tokens.npy has changed'),
    (_flip('tokens.npy', 20), 'tokens.npy has changed'),
    (_flip('sequence_start.npy', 200), 'sequence_start.npy has changed'),
    (_flip('flags.npy', -1), 'flags.npy has changed'),
    (_flip('id_bytes.npy', -1), 'id_bytes.npy has changed'),
    (lambda d: (d / 'flags.npy').unlink(), 'flags.npy is missing'),
    (lambda d: (d / 'meta.json').unlink(), 'meta.json cannot be read'),
    (_write(''), 'meta.json cannot be read'),
    (_write('[' * 100_000), 'meta.json cannot be read'),
    (_write('[]'), 'meta.json holds no object'),
    (_write('{"datasets": 3}'), 'earlier version'),
    (_rename_dataset, 'meta.json has changed'),
    (_as_of_an_earlier_version, 'earlier version'),
  ],
)
def test_a_damaged_set_is_made_again(encoder, tmp_path, capsys, damage, said):
  tokenize(RECORDS, encoder, tmp_path)
  (directory,) = (p for p in tmp_path.iterdir() if p.is_dir())
  damage(directory)
  capsys.readouterr()
  assert_same(tokenize(RECORDS, encoder, tmp_path), RECORDS, encoder)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{directory}: tokenised data are not as they were')
  assert said in line and line.endswith('making them again')
  # Once.
  tokenize(iter(()), encoder, tmp_path)
  assert capsys.readouterr().out == ''


def test_a_damaged_set_that_cannot_be_made_again(
  encoder, tmp_path, monkeypatch
):
  tokenize(RECORDS, encoder, tmp_path)
  (directory,) = (p for p in tmp_path.iterdir() if p.is_dir())
  _cut(directory)
  # Not permissions: tests may run as root.
  lock = directory.with_suffix('.lock')
  lock.unlink()
  lock.mkdir()
  with pytest.raises(
    errors.UserError, match=r'damaged \(tokens.npy has .*bytes'
  ):
    tokenize(RECORDS, encoder, tmp_path)


def test_processes_of_a_run_check_once(encoder, tmp_path, monkeypatch, capsys):
  made = tokenize(RECORDS, encoder, tmp_path)
  checked = []
  problem = checksums.problem

  def check(path, files):
    checked.append(path)
    return problem(path, files)

  monkeypatch.setattr(checksums, 'problem', check)

  def start(run):
    checked.clear()
    found = token_cache.TokenCache(tmp_path, encoder, 9, run).open(
      iter(RECORDS),
      BadRecords(),
      identity={'data': 'abc'},
      label='tokenizing',
    )
    assert_same(found, RECORDS, encoder)
    return len(checked)

  assert [start('a'), start('a'), start('b'), start('b')] == [1, 0, 1, 0]
  # Workers that get the set do not check it.
  checked.clear()
  assert_same(pickle.loads(pickle.dumps(made)), RECORDS, encoder)
  assert checked == []
  (directory,) = (p for p in tmp_path.iterdir() if p.is_dir())
  _zero(directory)
  assert start('c') == 1
  assert 'making them again' in capsys.readouterr().out


def test_a_damaged_partial_file_is_made_again(
  encoder, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(token_cache, 'CHUNK_RECORDS', 2)

  def stop_after(count):
    seen = iter(range(count))

    def check():
      if next(seen, None) is None:
        raise KeyboardInterrupt

    return check

  def start(check):
    return token_cache.TokenCache(tmp_path, encoder, 9).open(
      iter(RECORDS),
      BadRecords(),
      identity={'data': 'abc'},
      label='tokenizing',
      check=check,
    )

  with pytest.raises(KeyboardInterrupt):
    start(stop_after(3))
  parts = sorted(tmp_path.glob('*.part/*.npz'))
  assert len(parts) == 4
  content = bytearray(parts[0].read_bytes())
  content[content.index(b'NUMPY') + 130] ^= 1
  parts[0].write_bytes(content)
  parts[1].write_bytes(bytes(parts[1].stat().st_size))
  parts[2].write_bytes(parts[2].read_bytes()[:-9])
  # What is not of this source does not become a part of it.
  parts[0].with_name('000009.npz').write_bytes(parts[3].read_bytes())
  assert_same(start(lambda: None), RECORDS, encoder)
  lines = capsys.readouterr().out.splitlines()
  assert [line.partition(':')[0] for line in lines] == list(map(str, parts[:3]))


def test_more_names_than_small_numbers(encoder, tmp_path):
  one = Record(
    'a',
    'd',
    'q?',
    ('b',),
    {f'r{i:03}': (passage(i, f't{i}'),) for i in range(300)},
  )
  found = tokenize([one], encoder, tmp_path, identity={'data': 'retrievers'})
  assert [found.retrievers[i] for i in found.slots(0).retriever] == [
    *one.passages
  ]
  records = [
    Record(f'x{i}', f'd{i:05}', 'q?', ('b',), {}) for i in range(65_600)
  ]
  found = tokenize(records, encoder, tmp_path, identity={'data': 'datasets'})
  assert [found.datasets[i] for i in found.dataset] == [
    record.dataset for record in records
  ]


def test_a_long_name_costs_its_own_length(encoder, tmp_path):
  names = ['d', 'x' * 1_000_000, 'r\0', 'r']
  records = [
    Record(
      str(i), names[i % 4], 'q?', ('b',), {names[-i % 4]: (passage(1, 't'),)}
    )
    for i in range(2000)
  ]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  found = tokenize(records, encoder, tmp_path)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  # KiB; 2,000 times the longest name in UTF-32 is 8 million.
  assert grown < 200_000
  assert [found.datasets[i] for i in found.dataset] == [
    r.dataset for r in records
  ]
  assert [found.retrievers[found.slots(i).retriever[0]] for i in range(4)] == [
    *(names[-i % 4] for i in range(4))
  ]


def test_whatever_changes_the_ids_changes_the_key(encoder, tmp_path):
  def key(encoder=encoder, depth=5, identity=None):
    return token_cache.cache_key(encoder, depth, identity or {'a': 1})

  templates = dataclasses.replace(encoder.templates, answer=' so: {answer}')
  other_tokenizer = tmp_path / 'other'
  tiny_models.save_tokenizer(other_tokenizer)
  (other_tokenizer / 'chat_template.jinja').write_text(
    'x{{ messages[0].content }}'
  )
  keys = [
    key(),
    key(depth=6),
    key(identity={'a': 2}),
    key(PromptEncoder(encoder.tokenizer, templates)),
    key(PromptEncoder(load_tokenizer(other_tokenizer), encoder.templates)),
  ]
  assert len(set(keys)) == len(keys)
  assert key() == key(PromptEncoder(encoder.tokenizer, config.Templates()))


_PROGRAM = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
from vtokens import config
from vtokens.data import token_cache
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.models.tokenizers.tokenizer import load_tokenizer
from data import token_cache_test

token_cache.CHUNK_RECORDS = 2

def slow():
  for record in token_cache_test.RECORDS:
    time.sleep(0.3)
    yield record

encoder = PromptEncoder(load_tokenizer({tokenizer!r}), config.Templates())
token_cache_test.tokenize(slow(), encoder, pathlib.Path({directory!r}))
"""


def test_a_killed_run_goes_on_where_it_was(encoder, tmp_path, monkeypatch):
  tokenizer, directory = tmp_path / 'tokenizer', tmp_path / 'cache'
  tiny_models.save_tokenizer(tokenizer)
  tests = pathlib.Path(__file__).parents[1]
  program = _PROGRAM.format(
    tests=str(tests), tokenizer=str(tokenizer), directory=str(directory)
  )
  paths = os.pathsep.join([str(tests.parent), str(tests / 'support')])
  env = {**os.environ, 'PYTHONPATH': paths}
  process = subprocess.Popen([sys.executable, '-c', program], env=env)
  while len(list(directory.glob('*.part/*.npz'))) < 2:
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  done = sorted(directory.glob('*.part/*.npz'))
  times = {path.name: path.stat().st_mtime_ns for path in done}
  assert 2 <= len(times) < 6
  assert not list(directory.glob('*/meta.json'))

  monkeypatch.setattr(token_cache, 'CHUNK_RECORDS', 2)
  saved = []
  write_bytes = writers.write_bytes

  def write(path, data):
    saved.append(path.name)
    write_bytes(path, data)

  monkeypatch.setattr(writers, 'write_bytes', write)
  found = tokenize(RECORDS, encoder, directory)
  assert_same(found, RECORDS, encoder)
  assert sorted([*saved, *times]) == [f'{i:06d}.npz' for i in range(6)]


def test_what_reading_left_out_is_kept(encoder, tmp_path):
  report = BadRecords('skip')

  def read():
    from vtokens.data.checks import BadRecord, Kind

    yield RECORDS[0]
    report.add('a.jsonl:2', BadRecord(Kind.EMPTY, 'question: found nothing'))
    yield RECORDS[1]

  found = token_cache.TokenCache(tmp_path, encoder, 5).open(
    read(), report, identity={}, label='tokenizing'
  )
  assert found.meta['skipped'] == ['a.jsonl:2: question: found nothing']


def test_a_directory_that_cannot_be_written(encoder, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.UserError, match=r'config\.data\.token_cache'):
    tokenize(RECORDS, encoder, tmp_path / 'file')


@pytest.mark.parametrize('size', [2_000, 20_000])
def test_a_full_disk_leaves_no_half_file(size, encoder, tmp_path, monkeypatch):
  """While chunks are written, and while they are put together."""
  monkeypatch.setattr(token_cache, 'CHUNK_RECORDS', 8)
  records = [record(i) for i in range(800)]
  with file_limit.at(size), pytest.raises(errors.UserError, match='cannot be'):
    tokenize(records, encoder, tmp_path)
  left = [path.name for path in tmp_path.rglob('*') if path.is_file()]
  chunks = [name for name in left if name.endswith('.npz')]
  # Whole ones stay: the next run goes on after them.
  assert len(chunks) == (0 if size == 2_000 else 100)
  assert [name for name in left if name not in chunks] == [
    f'{token_cache.cache_key(encoder, 9, {"data": "abc"})}.lock'
  ]
  found = tokenize(records, encoder, tmp_path)
  assert_same(found, records, encoder)
