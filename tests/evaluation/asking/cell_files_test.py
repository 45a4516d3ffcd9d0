"""Answers on disk."""

import dataclasses
import json

import pytest
from etils import epath

from vtokens.evaluation.asking.cell_files import CellFile, CellFiles
from vtokens.evaluation.asking.cells import Answer, Cell
from vtokens.host import checksums, errors

CELL = Cell('d', 'm', 'tokens', 'run', 5, 3, 'bm25')
ONE = Answer(
  'eins\n"', 2, 'end', shown=(2, 0), passages_dropped=1, confidence=-0.25
)
TWO = Answer('\u2028', 1, 'length')


def opened(directory, *, cell: Cell = CELL, seed: int = 0) -> CellFile:
  identity = {'cell': dataclasses.asdict(cell), 'seed': seed}
  return CellFiles(epath.Path(directory)).open(cell, identity)


def test_what_is_added_is_read_again(tmp_path):
  file = opened(tmp_path)
  assert not file.answers
  assert not list(tmp_path.iterdir())
  file.append({'a': ONE})
  file.append({'b': TWO})
  assert file.answers == {'a': ONE, 'b': TWO}
  again = opened(tmp_path)
  assert again.answers == file.answers
  again.append({'c': ONE})
  assert list(opened(tmp_path).answers) == ['a', 'b', 'c']
  head, *rows = file.path.read_text().split('\n')[:-1]
  assert json.loads(head) == {'cell': dataclasses.asdict(CELL), 'seed': 0}
  assert len(rows) == 3


def test_confidence_is_kept(tmp_path):
  opened(tmp_path).append({'a': ONE, 'b': TWO})
  answers = opened(tmp_path).answers
  assert (answers['a'].confidence, answers['b'].confidence) == (-0.25, None)


def test_answers_of_earlier_versions_have_no_confidence(tmp_path):
  file = opened(tmp_path)
  file.append({'a': ONE})
  head, line = file.path.read_text().splitlines()
  row = checksums.without_seal(json.loads(line))
  del row['confidence']
  line = json.dumps(checksums.seal(row))
  file.path.write_text(f'{head}\n{line}\n')
  assert opened(tmp_path).answers['a'].confidence is None
  assert opened(tmp_path).answers['a'] == ONE
  row['confidence'] = 'high'
  line = json.dumps(checksums.seal(row))
  file.path.write_text(f'{head}\n{line}\n')
  with pytest.raises(
    errors.UserError, match=r'\.jsonl:2: confidence: expected a number'
  ):
    opened(tmp_path)


def test_another_identity_is_another_file(tmp_path):
  opened(tmp_path).append({'a': ONE})
  other = opened(tmp_path, seed=1)
  assert not other.answers
  other.append({'a': TWO})
  assert opened(tmp_path).answers == {'a': ONE}


def test_cut_off_anywhere_loses_whole_lines_only(tmp_path):
  file = opened(tmp_path)
  file.append({'a': ONE, 'b': TWO})
  whole = file.path.read_bytes()
  for size in range(len(whole)):
    file.path.write_bytes(whole[:size])
    cut = opened(tmp_path)
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
  file = opened(tmp_path)
  file.append({'a': ONE})
  file.path.write_bytes(file.path.read_bytes() + line)
  with pytest.raises(errors.UserError, match=r'\.jsonl:3: .*; delete'):
    opened(tmp_path)


def test_a_changed_answer_is_named(tmp_path):
  file = opened(tmp_path)
  file.append({'a': ONE})
  file.path.write_text(file.path.read_text().replace('eins', 'drei'))
  with pytest.raises(errors.UserError, match=r'\.jsonl:2: .*has changed'):
    opened(tmp_path)


def test_names_decide_nothing(tmp_path):
  opened(tmp_path).append({'a': ONE})
  renamed = dataclasses.replace(CELL, dataset='e', model='n', table='moved')
  file = opened(tmp_path, cell=renamed)
  assert file.answers == {'a': ONE}
  file.append({'b': TWO})
  assert opened(tmp_path, cell=renamed).answers == {'a': ONE, 'b': TWO}
  assert not opened(tmp_path, cell=renamed, seed=1).answers
  assert not opened(
    tmp_path, cell=dataclasses.replace(CELL, num_active=4)
  ).answers


def test_a_file_of_no_cell_is_not_taken(tmp_path):
  (tmp_path / 'other.jsonl').write_text('{"seed": 0}\n')
  assert not opened(tmp_path).answers


def test_names_of_files(tmp_path):
  for cell, name in (
    (CELL, 'd_m_tokens_run_k5_m3_bm25'),
    (Cell('a/b', 'x y', 'prompt'), 'a-b_x-y_prompt'),
    (Cell('d', 'm', 'closed_book'), 'd_m_closed_book'),
  ):
    assert opened(tmp_path, cell=cell).path.name.startswith(f'{name}-')
