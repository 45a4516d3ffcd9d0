"""Tests of vtokens.host.json_files."""

import json
import re

import pytest

from vtokens.host import errors, json_files


def _fails(data, shape, message):
  with pytest.raises(errors.UserError) as e:
    json_files.parse(data, 'file', shape, 'delete it')
  assert str(e.value) == f'file: {message}; delete it'


def test_what_was_written_is_read(tmp_path):
  value = {'a': [1, 2.5, None], 'ü': {'x': True}}
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(value, ensure_ascii=False), encoding='utf-8')
  assert json_files.read(path) == value
  shape = {'a': [(float, type(None))], 'ü': {str: bool}}
  assert json_files.read(path, shape) == value


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'not JSON: Expecting value: line 1 column 1 (char 0)'),
    (b'{"a": 1', "not JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"),
    (b'"\xff"', 'not UTF-8: invalid start byte at byte 1'),
    (b'\xef\xbb\xbf{}', None),
    (b'[' * 200_000, 'not JSON: nested too deeply'),
    (b'[' * 65 + b']' * 65, 'nested more than 64 deep'),
    (b'1' * 10_000, None),
  ],
)
def test_what_is_no_json(data, message):
  if message is not None:
    _fails(data, object, message)
    return
  # The rest of the message is Python's.
  with pytest.raises(errors.UserError, match=r'^file: not JSON: .*delete it$'):
    json_files.parse(data, 'file', object, 'delete it')


def test_64_deep_is_read():
  assert json_files.parse(b'[' * 64 + b']' * 64, 'file', list)


@pytest.mark.parametrize(
  ('value', 'shape', 'message'),
  [
    ([], dict, 'expected an object, got []'),
    ({}, list, 'expected a list, got {}'),
    (True, int, 'expected a whole number, got true'),
    (True, float, 'expected a number, got true'),
    (1.5, int, 'expected a whole number, got 1.5'),
    (1, bool, 'expected true or false, got 1'),
    (None, str, 'expected a text, got null'),
    ({'a': 1}, {'a': int, 'b': int}, 'b is missing'),
    (
      {'a': {'b': 'x'}},
      {'a': {'b': int}},
      'a.b: expected a whole number, got "x"',
    ),
    ({'a': {}}, {'a': {'b': int}}, 'a.b is missing'),
    ({'a': [1, '2']}, {'a': [int]}, 'a[1]: expected a whole number, got "2"'),
    (
      {'a': 1, 'b': 'x'},
      {'a': int, str: float},
      'b: expected a number, got "x"',
    ),
    ('x' * 99, int, f'expected a whole number, got "{"x" * 59}...'),
    ('x', (int, None.__class__), 'expected a whole number, got "x"'),
  ],
)
def test_what_is_of_another_shape(value, shape, message):
  _fails(json.dumps(value), shape, message)


def test_files_that_cannot_be_read(tmp_path):
  for path, reason in (
    (tmp_path / 'none', 'cannot be read: No such file or directory'),
    (tmp_path, 'is a directory, expected a file'),
  ):
    with pytest.raises(errors.UserError) as e:
      json_files.read(path)
    assert str(e.value) == f'{path}: {reason}'


def test_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes('{"a": "\u2028"}\n{"b": 2}\n{"c'.encode())
  lines = list(json_files.read_lines(path, {'b': int}, head={'a': str}))
  assert lines == [(13, {'a': '\u2028'}), (22, {'b': 2})]
  with pytest.raises(
    errors.UserError, match=re.escape(f'{path}:1: b is missing; mend it')
  ):
    list(json_files.read_lines(path, {'b': int}, 'mend it'))


def test_a_last_line_without_a_line_break(tmp_path):
  """A kill cuts lines of vtokens; people's editors leave the break out."""
  path = tmp_path / 'a.jsonl'

  def read(data, open_end):
    path.write_bytes(b'{"a": 1}\n' + data)
    lines = json_files.read_lines(path, {'a': int}, open_end=open_end)
    return [value for _, value in lines]

  for open_end in ('drop', 'try', 'keep'):
    assert read(b'', open_end) == read(b'  ', open_end) == [{'a': 1}]
    whole = read(b'{"a": 2}', open_end)
    assert whole == [{'a': 1}, {'a': 2}][: 1 if open_end == 'drop' else 2]
  for data in (b'{"a"', b'{"b": 2}'):
    assert read(data, 'drop') == read(data, 'try') == [{'a': 1}]
    with pytest.raises(errors.UserError, match=re.escape(f'{path}:2: ')):
      read(data, 'keep')
