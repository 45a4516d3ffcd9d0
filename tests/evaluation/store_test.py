"""Answers on disk."""

import json

import pytest

from vtokens import errors
from vtokens.evaluation.cells import Answer, Cell
from vtokens.evaluation.store import CellFile, file_name

CELL = Cell('d', 'm', 'tokens', 'run', 5, 3, 'bm25')
ONE = Answer('eins\n"', 2, 'end', shown=(2, 0), passages_dropped=1)
TWO = Answer('\u2028', 1, 'length')


def test_what_is_added_is_read_again(tmp_path):
  file = CellFile(tmp_path, CELL, {'seed': 0})
  assert not file.answers
  assert not list(tmp_path.iterdir())
  file.append({'a': ONE})
  file.append({'b': TWO})
  assert file.answers == {'a': ONE, 'b': TWO}
  again = CellFile(tmp_path, CELL, {'seed': 0})
  assert again.answers == file.answers
  again.append({'c': ONE})
  assert list(CellFile(tmp_path, CELL, {'seed': 0}).answers) == ['a', 'b', 'c']
  head, *rows = file.path.read_text().split('\n')[:-1]
  assert json.loads(head) == {'seed': 0}
  assert len(rows) == 3


def test_another_identity_is_another_file(tmp_path):
  CellFile(tmp_path, CELL, {'seed': 0}).append({'a': ONE})
  other = CellFile(tmp_path, CELL, {'seed': 1})
  assert not other.answers
  other.append({'a': TWO})
  assert CellFile(tmp_path, CELL, {'seed': 0}).answers == {'a': ONE}


def test_cut_off_anywhere_loses_whole_lines_only(tmp_path):
  file = CellFile(tmp_path, CELL, {'seed': 0})
  file.append({'a': ONE, 'b': TWO})
  whole = file.path.read_bytes()
  for size in range(len(whole)):
    file.path.write_bytes(whole[:size])
    cut = CellFile(tmp_path, CELL, {'seed': 0})
    lines = whole[:size].count(b'\n')
    assert list(cut.answers) == ['a', 'b'][: max(0, lines - 1)]
    missing = {'a': ONE, 'b': TWO}
    cut.append({k: v for k, v in missing.items() if k not in cut.answers})
    assert file.path.read_bytes() == whole


@pytest.mark.parametrize(
  'line',
  [
    b'{"id": "c"}\n',
    b'nonsense\n',
    b'[]\n',
    b'5\n',
    b'{"text": "x"}\n',
    b'{"id": "c", "text": "x", "num_tokens": 1, "stop": "end"}\n',
  ],
)
def test_a_broken_line_is_named(tmp_path, line):
  file = CellFile(tmp_path, CELL, {'seed': 0})
  file.append({'a': ONE})
  file.path.write_bytes(file.path.read_bytes() + line)
  with pytest.raises(errors.UserError, match=r'\.jsonl:3: not a line of ans'):
    CellFile(tmp_path, CELL, {'seed': 0})


def test_names_of_files():
  assert file_name(CELL) == 'd_m_tokens_run_k5_m3_bm25'
  assert file_name(Cell('a/b', 'x y', 'prompt')) == 'a-b_x-y_prompt'
