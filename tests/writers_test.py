"""Tests of vtokens.writers."""

import json

import pytest
import tqdm

from vtokens import writers


def test_say_goes_to_stdout_above_a_bar(capsys):
  with tqdm.tqdm(total=2):
    writers.say('one\ntwo')
  captured = capsys.readouterr()
  assert captured.out == 'one\ntwo\n'
  assert '2' in captured.err


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
