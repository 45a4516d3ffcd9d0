"""Tests of vtokens.retrieval.claims."""

import pytest

from vtokens import errors
from vtokens.retrieval import claims


def claim(directory, *, rebuild=False, **identity):
  return claims.claim(
    directory, identity, 'an index', rebuild=rebuild, advice='Do this.'
  )


@pytest.fixture
def complete(tmp_path):
  directory = tmp_path / 'index'
  assert not claim(directory, k1=0.9, b=0.4)
  (directory / 'data').write_text('12345')
  claims.finish(directory, {'words': 3})
  return directory


def test_a_complete_directory_is_found_again(complete):
  assert claim(complete, k1=0.9, b=0.4)
  assert claims.read_info(complete) == {'words': 3}
  assert claims.read_identity(complete) == {'k1': 0.9, 'b': 0.4}
  assert claims.num_bytes(complete) > 5


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
  claims.finish(complete)
  assert claim(complete, k1=1.2, b=0.4)


def test_rebuild_keeps_what_fits(complete):
  assert claim(complete, k1=0.9, b=0.4, rebuild=True)
  assert (complete / 'data').exists()


@pytest.mark.parametrize(
  ('damage', 'expected'),
  [
    (lambda p: p.write_text('123'), 'data has 3 bytes, expected 5 bytes'),
    (lambda p: p.unlink(), 'data is missing, expected 5 bytes'),
  ],
)
def test_damage_is_refused(complete, damage, expected):
  damage(complete / 'data')
  with pytest.raises(errors.UserError, match=expected):
    claim(complete, k1=0.9, b=0.4)
  assert not claim(complete, k1=0.9, b=0.4, rebuild=True)


@pytest.mark.parametrize('rebuild', [False, True])
def test_a_directory_of_others_is_never_touched(tmp_path, rebuild):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(errors.UserError, match='is not empty'):
    claim(tmp_path, a=1, rebuild=rebuild)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_an_unreadable_identity_is_one_message(complete):
  (complete / 'identity.json').write_text('{')
  with pytest.raises(errors.UserError, match=r'identity\.json: cannot be read'):
    claim(complete, k1=0.9, b=0.4)


def test_a_part_appears_whole_or_not_at_all(tmp_path):
  directory = tmp_path / 'index'
  claim(directory, a=1)
  with pytest.raises(ZeroDivisionError):
    with claims.new_part(directory / 'shards' / '0') as part:
      part.mkdir()
      (part / 'x').write_text('1')
      _ = 1 / 0
  assert list((directory / 'shards').iterdir()) == []
  with claims.new_part(directory / 'shards' / '0') as part:
    part.mkdir()
    (part / 'x').write_text('1')
  assert (directory / 'shards' / '0' / 'x').read_text() == '1'


def test_of_two_workers_the_first_wins(tmp_path):
  path = tmp_path / 'shard'
  with claims.new_part(path) as slow:
    slow.mkdir()
    (slow / 'x').write_text('slow')
    with claims.new_part(path) as fast:
      fast.mkdir()
      (fast / 'x').write_text('fast')
  assert (path / 'x').read_text() == 'fast'
  assert [p.name for p in tmp_path.iterdir()] == ['shard']


def test_leftovers_of_a_kill_are_removed(tmp_path):
  directory = tmp_path / 'index'
  claim(directory, a=1)
  manager = claims.new_part(directory / 'shards' / '0')
  part = manager.__enter__()  # And never left.
  part.mkdir()
  (part / 'x').write_text('1')
  assert not claim(directory, a=1)
  assert list((directory / 'shards').iterdir()) == []
