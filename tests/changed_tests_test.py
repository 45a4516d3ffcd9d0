"""Which tests belong to a change."""

import subprocess

import changed_tests
import pytest


@pytest.fixture
def root(tmp_path):
  for path, text in {
    'vtokens/a/__init__.py': '',
    'vtokens/a/own.py': '',
    'vtokens/a/used.py': '',
    'vtokens/a/below.py': '',
    'vtokens/a/user.py': 'from vtokens.a import below, own',
    'vtokens/a/unused.py': '',
    'tests/support/helper.py': '',
    'tests/a/own_test.py': '',
    'tests/a/other_test.py': 'import helper\nfrom vtokens.a.used import x',
    'tests/a/user_test.py': 'from vtokens.a import user, own',
    'tests/configs_test.py': '',
    'tests/docs_test.py': '',
  }.items():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
  return tmp_path


@pytest.mark.parametrize(
  'path, expected',
  [
    ('tests/a/own_test.py', 'a/own_test.py'),
    ('tests/a/removed_test.py', None),
    ('vtokens/a/own.py', 'a/own_test.py'),
    ('vtokens/a/used.py', 'a/other_test.py'),
    ('vtokens/a/below.py', 'a/user_test.py'),
    ('vtokens/a/unused.py', None),
    ('vtokens/a/__init__.py', None),
    ('tests/support/helper.py', 'a/other_test.py'),
    ('configs/x.py', 'configs_test.py'),
    ('README.md', 'docs_test.py'),
  ],
)
def test_tests_of(root, path, expected):
  found = changed_tests.tests_of([path], root)
  assert found == ([f'tests/{expected}'] if expected else [])


def test_changed_files(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ('-c', 'user.name=x', '-c', 'user.email=x@example.org')
    subprocess.run(['git', *identity, *arguments], cwd=tmp_path, check=True)

  git('init', '-q', '-b', 'main')
  for name in ('same', 'committed', 'edited'):
    (tmp_path / name).write_text('')
  git('add', '.')
  git('commit', '-qm', 'x')
  git('switch', '-qc', 'branch')
  (tmp_path / 'committed').write_text('x')
  git('commit', '-qam', 'x')
  (tmp_path / 'edited').write_text('x')
  (tmp_path / 'new é').write_text('')
  found = changed_tests.changed_files('main', tmp_path)
  assert found == ['committed', 'edited', 'new é']
