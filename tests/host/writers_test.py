"""Tests of vtokens.host.writers."""

import io
import json
import time

import file_limit
import pytest
import tqdm
from etils import epath

from vtokens.host import errors, writers


def test_say_goes_to_stdout_above_a_bar(capsys):
  with tqdm.tqdm(total=2):
    writers.say('one\ntwo')
  captured = capsys.readouterr()
  assert captured.out == 'one\ntwo\n'
  assert '2' in captured.err


def test_a_bar_moves_while_nothing_happens(monkeypatch):
  monkeypatch.setattr(writers, 'TICK', 0.05)
  shown = io.StringIO()
  with writers.progress(total=2, file=shown, leave=False) as bar:
    bar.update(1)
    deadline = time.monotonic() + 10
    # The one thread may still sleep as long as in other tests.
    while shown.getvalue().count('\r') < 4 and time.monotonic() < deadline:
      time.sleep(0.01)
  assert shown.getvalue().count('1/2') > 2
  closed = shown.getvalue()
  time.sleep(0.2)
  assert shown.getvalue() == closed


def test_write_text_makes_directories(tmp_path):
  path = tmp_path / 'a' / 'b.txt'
  writers.write_text(path, 'Grüße\n')
  writers.write_text(path, 'ß\n')
  assert path.read_bytes() == 'ß\n'.encode()
  assert [p.name for p in path.parent.iterdir()] == ['b.txt']


def test_write_json_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'x.json'
  writers.write_json(path, {'text': 'ä', 'list': [1, None]})
  before = path.read_text(encoding='utf-8')
  assert json.loads(before) == {'text': 'ä', 'list': [1, None]}
  assert 'ä' in before
  with pytest.raises(TypeError):
    writers.write_json(path, {'bad': object()})
  # Half an emoji: the encoder stops in the middle of the file.
  with pytest.raises(UnicodeEncodeError):
    writers.write_text(path, 'start \ud83d')
  assert path.read_text(encoding='utf-8') == before


def test_a_full_disk_leaves_nothing(tmp_path):
  path = tmp_path / 'x.txt'
  writers.write_text(path, 'before')
  with (
    file_limit.at(10_000),
    pytest.raises(
      errors.NotWrittenError, match=f'^{path}: cannot be written: .* too large'
    ),
  ):
    writers.write_text(path, 'x' * 20_000)
  assert path.read_text() == 'before'
  # Nor does what cannot be put in its place.
  (tmp_path / 'directory').mkdir()
  with pytest.raises(errors.NotWrittenError, match=r'directory$'):
    writers.write_text(tmp_path / 'directory', 'x')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['directory', 'x.txt']


def test_append_replaces_what_follows(tmp_path):
  path = tmp_path / 'new' / 'a'
  writers.append(path, 0, b'abc')
  writers.append(path, 3, b'def')
  writers.append(path, 4, b'x')
  assert path.read_bytes() == b'abcdx'


@pytest.mark.parametrize('there', [False, True])
def test_append_to_a_file_that_lost_its_content(there, tmp_path):
  path = tmp_path / 'a'
  if there:
    path.write_bytes(b'ab')
  with pytest.raises(errors.UserError, match=r'has \d bytes, but 3 '):
    writers.append(path, 3, b'd')
  # Nor is an empty one made.
  assert path.exists() == there
  assert not there or path.read_bytes() == b'ab'


def test_copy_files_keeps_directories(tmp_path):
  (tmp_path / 'a' / 'b').mkdir(parents=True)
  (tmp_path / 'a' / '1').write_bytes(b'one')
  (tmp_path / 'a' / 'b' / '2').write_bytes(b'two')
  writers.copy_files(epath.Path(tmp_path / 'a'), epath.Path(tmp_path / 'c'))
  assert (tmp_path / 'c' / '1').read_bytes() == b'one'
  assert (tmp_path / 'c' / 'b' / '2').read_bytes() == b'two'
