"""Tests of vtokens.host.checksums, and of lines that carry one."""

import hashlib
import json

import pytest
from etils import epath

from vtokens.evaluation.asking.cell_files import CellFile, CellFiles
from vtokens.evaluation.asking.cells import Answer, Cell
from vtokens.host import checksums, errors


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'empty').touch()
  (tmp_path / 'large').write_bytes(bytes(range(256)) * 20_000)
  (tmp_path / 'below').mkdir()
  (tmp_path / 'below' / 'small').write_bytes(b'x')
  return checksums.of_files(tmp_path, ['empty', 'large', 'below/small'])


def test_of_files(files):
  content = {
    'empty': b'',
    'large': bytes(range(256)) * 20_000,
    'below/small': b'x',
  }
  assert files == {
    name: {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    for name, data in content.items()
  }


def test_no_problem(tmp_path, files):
  assert checksums.problem(tmp_path, files) == ''


@pytest.mark.parametrize('at', [0, 2_560_000, -1])
def test_one_bit(tmp_path, files, at):
  data = bytearray((tmp_path / 'large').read_bytes())
  data[at] ^= 0x80
  (tmp_path / 'large').write_bytes(data)
  expected = 'the content of large has changed since it was written'
  assert checksums.problem(tmp_path, files) == expected
  # Where no checksum was kept, the size alone is compared.
  del files['large']['sha256']
  assert checksums.problem(tmp_path, files) == ''


def test_sizes(tmp_path, files):
  (tmp_path / 'below' / 'small').unlink()
  assert checksums.problem(tmp_path, files) == (
    'below/small is missing, expected 1 bytes'
  )
  (tmp_path / 'empty').write_text('12')
  assert checksums.problem(tmp_path, files) == (
    'empty has 2 bytes, expected 0 bytes'
  )


def test_seal():
  values = {'a': [1, 2.5, None], 'b': {'é': 'ü'}}
  sealed = json.loads(json.dumps(checksums.seal(values)))
  assert checksums.has_seal(sealed) and checksums.is_sealed(sealed)
  assert checksums.without_seal(sealed) == values
  assert not checksums.has_seal(values) and not checksums.is_sealed(values)
  for changed in ({**sealed, 'a': [1, 2.5]}, {**sealed, 'c': 0}):
    assert checksums.has_seal(changed) and not checksums.is_sealed(changed)


def test_an_answer_that_has_changed(tmp_path):
  identity = {'seed': 0, 'cell': {'dataset': 'd', 'condition': 'prompt'}}
  answers = {
    'a': Answer('one\u2028', 1, 'end', shown=(1, 0)),
    'b': Answer('two', 1, 'end'),
  }

  def start() -> CellFile:
    files = CellFiles(epath.Path(tmp_path))
    return files.open(Cell('d', 'm', 'prompt'), identity)

  file = start()
  file.append(answers)
  assert start().answers == answers
  whole = file.path.read_text()
  file.path.write_text(whole.replace('two', 'twp'))
  with pytest.raises(errors.UserError, match=r'\.jsonl:3: the answer has chan'):
    start()
  # Lines of an earlier version have no checksum.
  head, *lines = whole.splitlines()[:1] + whole.split('\n')[1:-1]
  rows = [checksums.without_seal(json.loads(line)) for line in lines]
  file.path.write_text('\n'.join([head, *map(json.dumps, rows), '']))
  assert start().answers == answers
