"""Tests of vtokens.chunk: the page docs/own_documents.md up to its training."""

import json
import pathlib
import subprocess
import sys

import pytest

from vtokens import chunk
from vtokens.data import formats
from vtokens.host import errors

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLE = _ROOT / 'examples/own_documents'


def _run(place, *arguments):
  return subprocess.run(
    [sys.executable, '-m', *arguments],
    cwd=place,
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def test_from_text_files_to_training_records(tmp_path):
  said = _run(
    tmp_path,
    'vtokens.chunk',
    f'--documents={_EXAMPLE}/articles',
    '--out=passages.jsonl',
  )
  lines = (tmp_path / 'passages.jsonl').read_text().splitlines()
  assert said.startswith(f'6 files, {len(lines)} passages of at most 600 char')
  (tmp_path / 'questions.jsonl').write_bytes(
    (_EXAMPLE / 'questions.jsonl').read_bytes()
  )
  retrieve = 'configs/retrieve/own_documents.py'
  _run(tmp_path, 'vtokens.retrieve', f'--config={_ROOT / retrieve}')
  recall = json.loads((tmp_path / 'retrieved/recall.json').read_text())
  assert recall['questions']['bm25']['recall@1'] >= 0.8
  # In the order of the questions, for head and tail.
  records = formats.read_all([str(tmp_path / 'retrieved/records.jsonl')])
  asked = [
    json.loads(line)['question']
    for line in (tmp_path / 'questions.jsonl').read_text().splitlines()
  ]
  assert [record.question for record in records] == asked
  assert all(1 <= len(record.ranked('bm25')) <= 5 for record in records)


def test_refused(tmp_path):
  (tmp_path / 'a.txt').write_text(' \n')
  with pytest.raises(errors.UserError, match='1 text files in it are empty'):
    chunk.chunk(str(tmp_path), str(tmp_path / 'out'), 100)
  (tmp_path / 'out').write_text('mine')
  with pytest.raises(errors.UserError, match='never replaced'):
    chunk.chunk(str(tmp_path), str(tmp_path / 'out'), 100)
  assert (tmp_path / 'out').read_text() == 'mine'


def test_files_of_other_kinds_are_named(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('Some text.')
  (tmp_path / 'b.pdf').write_bytes(b'%PDF')
  chunk.chunk(str(tmp_path), str(tmp_path / 'out.jsonl'), 100)
  said = capsys.readouterr().out
  assert f'left out, not .txt or .md: {tmp_path}/b.pdf\n' in said
  assert json.loads((tmp_path / 'out.jsonl').read_text()) == {
    'id': 'a.txt#1',
    'title': 'a',
    'text': 'Some text.',
  }
