"""Tests of vtokens.host.claimed_directory."""

import json
import subprocess

import pytest

from vtokens.host import claimed_directory, errors


def claim(directory, *, rebuild=False, **identity):
  return claimed_directory.claim(
    directory, identity, 'an index', rebuild=rebuild, advice='Do this.'
  )


@pytest.fixture
def complete(tmp_path):
  directory = tmp_path / 'index'
  assert not claim(directory, k1=0.9, b=0.4)
  (directory / 'data').write_text('12345')
  claimed_directory.finish(directory, {'words': 3})
  return directory


def test_a_complete_directory_is_found_again(complete):
  assert claim(complete, k1=0.9, b=0.4)
  assert claimed_directory.read_info(complete) == {'words': 3}
  assert claimed_directory.read_identity(complete) == {'k1': 0.9, 'b': 0.4}
  assert claimed_directory.num_bytes(complete) > 5


def test_another_identity_is_refused_by_what_differs(complete):
  with pytest.raises(errors.UserError) as e:
    claim(complete, k1=1.2, b=0.4)
  message = str(e.value)
  assert 'k1: 0.9 there, 1.2 now' in message
  assert 'b:' not in message
  assert message.endswith('Do this.')
  assert (complete / 'data').exists()


def test_rebuild_starts_afresh(complete):
  assert not claim(complete, k1=1.2, b=0.4, rebuild=True)
  assert not (complete / 'data').exists()
  claimed_directory.finish(complete)
  assert claim(complete, k1=1.2, b=0.4)


def test_rebuild_keeps_what_fits(complete):
  assert claim(complete, k1=0.9, b=0.4, rebuild=True)
  assert (complete / 'data').exists()


def _edit_complete(edit):
  def damage(directory):
    path = directory / 'complete.json'
    path.write_text(edit(path.read_text()))

  return damage


@pytest.mark.parametrize(
  ('damage', 'expected'),
  [
    (
      lambda d: (d / 'data').write_text('123'),
      'data has 3 bytes, expected 5 bytes',
    ),
    (lambda d: (d / 'data').unlink(), 'data is missing, expected 5 bytes'),
    (
      lambda d: (d / 'data').write_text('12344'),
      'the content of data has changed',
    ),
    (
      lambda d: (d / 'data').write_bytes(bytes(5)),
      'the content of data has changed',
    ),
    (
      lambda d: (d / 'identity.json').write_text('{'),
      'identity.json has 1 bytes',
    ),
    (
      lambda d: (d / 'identity.json').write_text(
        (d / 'identity.json').read_text().replace('0.9', '1.9')
      ),
      'the content of identity.json has changed',
    ),
    (
      _edit_complete(lambda text: text.replace('"words": 3', '"words": 7')),
      'the content of complete.json has changed',
    ),
  ],
)
def test_damage_is_refused(complete, damage, expected):
  damage(complete)
  with pytest.raises(errors.UserError) as e:
    claim(complete, k1=0.9, b=0.4)
  assert str(e.value).startswith(f'{complete} holds an index, damaged: ')
  assert expected in str(e.value)
  assert str(e.value).endswith('Do this.')
  assert not claim(complete, k1=0.9, b=0.4, rebuild=True)
  assert not (complete / 'data').exists()


def test_an_index_without_checksums_gets_them(complete, capsys):
  path = complete / 'complete.json'
  content = json.loads(path.read_text())
  for key in ('sha256', 'sha256_of_the_rest'):
    del content[key]
  path.write_text(json.dumps(content))
  assert claim(complete, k1=0.9, b=0.4)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{complete}: ')
  assert 'without checksums' in line
  assert claimed_directory.read_info(complete) == {'words': 3}
  assert claim(complete, k1=0.9, b=0.4)
  assert capsys.readouterr().out == ''
  (complete / 'data').write_text('12344')
  with pytest.raises(errors.UserError, match=r'\bdata has changed'):
    claim(complete, k1=0.9, b=0.4)


def test_damaged_parts_of_what_is_not_complete_are_removed(tmp_path, capsys):
  directory = tmp_path / 'index'
  claim(directory, a=1)
  for name in ('0', '1', '2'):
    with claimed_directory.new_part(directory / 'shards' / name) as part:
      part.mkdir()
      (part / 'x').write_text('12345')
  for name in ('a', 'b', 'c'):
    with claimed_directory.new_part(directory / 'hits' / name) as part:
      part.write_text('12345')
  (directory / 'shards' / '0' / 'x').write_text('12344')
  (directory / 'shards' / '1' / 'x').unlink()
  (directory / 'hits' / 'a').write_bytes(bytes(5))
  (directory / 'hits' / 'b').unlink()
  assert not claim(directory, a=1)
  assert sorted(p.name for p in (directory / 'shards').iterdir()) == ['2']
  left = sorted(p.name for p in (directory / 'hits').iterdir())
  assert [name for name in left if name in 'abc'] == ['c']
  lines = capsys.readouterr().out.splitlines()
  assert sorted(line.partition(':')[0] for line in lines) == sorted(
    str(directory / name) for name in ('shards/0', 'shards/1', 'hits/a')
  )
  # The format is that of a program that everybody has.
  for where, sums in (('hits', 'c.sha256'), ('shards/2', 'SHA256SUMS')):
    subprocess.run(['sha256sum', '-c', sums], cwd=directory / where, check=True)


@pytest.mark.parametrize('rebuild', [False, True])
def test_a_directory_of_others_is_never_touched(tmp_path, rebuild):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(errors.UserError, match='is not empty'):
    claim(tmp_path, a=1, rebuild=rebuild)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_an_unreadable_identity_is_one_message(complete):
  (complete / 'complete.json').unlink()
  (complete / 'identity.json').write_text('{')
  with pytest.raises(errors.UserError, match=r'identity\.json: not JSON'):
    claim(complete, k1=0.9, b=0.4)


def test_a_part_appears_whole_or_not_at_all(tmp_path):
  directory = tmp_path / 'index'
  claim(directory, a=1)
  with pytest.raises(ZeroDivisionError):
    with claimed_directory.new_part(directory / 'shards' / '0') as part:
      part.mkdir()
      (part / 'x').write_text('1')
      _ = 1 / 0
  assert list((directory / 'shards').iterdir()) == []
  with claimed_directory.new_part(directory / 'shards' / '0') as part:
    part.mkdir()
    (part / 'x').write_text('1')
  assert (directory / 'shards' / '0' / 'x').read_text() == '1'


def test_of_two_workers_the_first_wins(tmp_path):
  path = tmp_path / 'shard'
  with claimed_directory.new_part(path) as slow:
    slow.mkdir()
    (slow / 'x').write_text('slow')
    with claimed_directory.new_part(path) as fast:
      fast.mkdir()
      (fast / 'x').write_text('fast')
  assert (path / 'x').read_text() == 'fast'
  assert [p.name for p in tmp_path.iterdir()] == ['shard']


def test_leftovers_of_a_kill_are_removed(tmp_path):
  directory = tmp_path / 'index'
  claim(directory, a=1)
  manager = claimed_directory.new_part(directory / 'shards' / '0')
  part = manager.__enter__()  # And never left.
  part.mkdir()
  (part / 'x').write_text('1')
  assert not claim(directory, a=1)
  assert list((directory / 'shards').iterdir()) == []


def test_a_kill_before_the_identity_is_no_directory_of_others(tmp_path):
  directory = tmp_path / 'index'
  directory.mkdir()
  (directory / 'identity.json.partial').write_text('{"a"')
  assert not claim(directory, a=1)
  assert claimed_directory.read_identity(directory) == {'a': 1}
