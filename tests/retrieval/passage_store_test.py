"""Tests of vtokens.retrieval.passage_store and inputs."""

import gzip
import json
import os

import pytest
import retrieval_data

from vtokens.data import records
from vtokens.host import errors
from vtokens.retrieval import passage_store, retrieval_config


def prepare(tmp_path, rows, *, rebuild=False, **settings):
  path = retrieval_data.write(tmp_path / 'in' / 'corpus.jsonl', rows)
  return passage_store.prepare(
    retrieval_config.Corpus(paths=(path,), **settings),
    tmp_path / 'index',
    rebuild=rebuild,
  )


@pytest.mark.parametrize('shard_size', [1, 7, 20, 21, 100])
def test_passages_come_back_by_row(tmp_path, shard_size):
  rows = retrieval_data.passages(20)
  rows[3]['text'] = 'Ключ 鍵 🔑 "quoted"\nsecond line\u2028third'
  found = prepare(tmp_path, rows, shard_size=shard_size)
  assert len(found) == 20
  assert found.shard_sizes == tuple(
    min(shard_size, 20 - start) for start in range(0, 20, shard_size)
  )
  for i in (19, 3, 0, 11):
    assert found[i] == records.Passage(**rows[i])
  last = len(found.shard_sizes) - 1
  assert found.shard(last, 0, 999)[-1].id == 'p19'
  assert found.first_row(last) == last * shard_size
  for row in (-1, 20):
    with pytest.raises(IndexError):
      found[row]


def test_files_are_one_corpus(tmp_path):
  rows = retrieval_data.passages(6)
  first = retrieval_data.write(tmp_path / 'a.jsonl', rows[:2])
  second = tmp_path / 'b.jsonl.gz'
  second.write_bytes(
    gzip.compress('\n'.join(map(json.dumps, rows[2:])).encode())
  )
  found = passage_store.prepare(
    retrieval_config.Corpus(paths=(first, str(second)), shard_size=3),
    tmp_path / 'index',
    rebuild=False,
  )
  assert [found[i].id for i in range(6)] == [row['id'] for row in rows]


def test_an_unchanged_corpus_is_reused_and_a_changed_one_refused(tmp_path):
  rows = retrieval_data.passages(5)
  prepare(tmp_path, rows)
  shard = tmp_path / 'index/corpus/shards/00000/passages.jsonl'
  written = shard.stat().st_mtime_ns
  prepare(tmp_path, rows)
  assert shard.stat().st_mtime_ns == written
  rows[4]['text'] = rows[4]['text'].swapcase()  # As many bytes as before.
  with pytest.raises(errors.UserError, match=r'files\.0: .* there, .* now'):
    prepare(tmp_path, rows)
  assert prepare(tmp_path, rows, rebuild=True)[4].text == rows[4]['text']


def test_a_corpus_may_be_moved(tmp_path):
  rows = retrieval_data.passages(5)
  prepare(tmp_path, rows)
  moved = retrieval_data.write(tmp_path / 'elsewhere' / 'c.jsonl', rows)
  passage_store.prepare(
    retrieval_config.Corpus(paths=(moved,)), tmp_path / 'index', rebuild=False
  )


def test_hashes_of_unchanged_files_are_remembered(tmp_path):
  rows = retrieval_data.passages(5)
  path = tmp_path / 'in' / 'corpus.jsonl'

  def change_unnoticed(text):
    """Writes as many bytes, and gives the file the time it had before."""
    rows[4]['text'] = text
    time = path.stat().st_mtime_ns
    retrieval_data.write(path, rows)
    os.utime(path, ns=(time, time))

  def is_read_again():
    settings = retrieval_config.Corpus(paths=(str(path),))
    try:
      passage_store.prepare(settings, tmp_path / 'index', rebuild=False)
    except errors.UserError as e:
      assert 'files.0' in str(e)
      return True
    return False

  text = rows[4]['text']
  prepare(tmp_path, rows)
  # Just written: a change within the same second keeps the file's time.
  change_unnoticed(text.swapcase())
  assert is_read_again()
  change_unnoticed(text)
  os.utime(path, (1e9, 1e9))
  assert not is_read_again()
  # Hashed long after it was written: length and time are believed.
  change_unnoticed(text.swapcase())
  assert not is_read_again()
  os.utime(path, (1e9 + 1, 1e9 + 1))
  assert is_read_again()


def test_two_passages_of_one_id_are_refused(tmp_path):
  rows = retrieval_data.passages(9)
  rows[7]['id'] = 'p2'
  with pytest.raises(errors.UserError, match=r'corpus\.jsonl:8: id: found p2'):
    prepare(tmp_path, rows, shard_size=4)


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    ({'id': 'x', 'title': 'y'}, r'corpus.jsonl:2: .*text: missing'),
    (
      {'title': 'y', 'text': 'z'},
      r'corpus.jsonl:2: id or .*: missing',
    ),
    ({'id': 'x', 'text': 5}, r'corpus.jsonl:2: text: found a number'),
  ],
)
def test_bad_lines_are_an_error_or_counted(tmp_path, bad, message):
  rows = retrieval_data.passages(3)
  rows.insert(1, bad)
  with pytest.raises(errors.UserError, match=message) as e:
    prepare(tmp_path, rows)
  assert '--config.corpus.on_bad_record=skip' in str(e.value)
  found = prepare(tmp_path, rows, on_bad_record='skip', rebuild=True)
  assert len(found) == 3
  skipped = tmp_path / 'index/corpus/skipped_passages.txt'
  assert len(skipped.read_text().splitlines()) == 1


def test_a_corpus_without_passages_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='found no passage'):
    prepare(tmp_path, [])


def test_a_missing_file_is_one_message(tmp_path):
  with pytest.raises(errors.UserError, match=r'absent\.jsonl cannot be read'):
    passage_store.prepare(
      retrieval_config.Corpus(paths=(str(tmp_path / 'absent.jsonl'),)),
      tmp_path / 'index',
      rebuild=False,
    )
