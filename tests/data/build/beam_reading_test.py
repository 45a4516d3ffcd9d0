"""Apache Beam, in its own runner in this process, against the local one."""

import dataclasses
import json
import pathlib

import pytest

from vtokens.data import built_datasets
from vtokens.data.build import build_command
from vtokens.data.build.build_config import Config, Split
from vtokens.host import errors


def row(i, **fields):
  return {
    'id': f'r{i}',
    'question': f'Which number is {i}?',
    'answers': [str(i)],
    'passages': {
      'bm25': [{'text': f'{i} or {j}', 'score': -j / 3} for j in range(4)],
      'none': [],
    },
    **fields,
  }


def write(path, rows):
  path.write_text(
    ''.join(f'{r if isinstance(r, str) else json.dumps(r)}\n' for r in rows)
  )
  return str(path)


def both(cfg):
  """[(store, account of the split)] of the local and of Beam's build."""
  results = []
  for runner in ('local', 'beam'):
    path = build_command.build(
      dataclasses.replace(cfg, runner=runner, out=f'{cfg.out}-{runner}')
    )
    account = json.loads(pathlib.Path(path, 'build.json').read_text())
    results.append((built_datasets.RecordStore(path, 'train'), account))
  return results


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Three files with bad lines and ids that occur in two of them."""
  directory = tmp_path_factory.mktemp('sources')
  none = {'answers': ['none']}
  return tuple(
    write(directory / name, rows)
    for name, rows in (
      ('c.jsonl', [*map(row, range(40)), '{']),
      ('a.jsonl', [row(5, question='Again?'), *map(row, range(100, 140))]),
      ('b.jsonl', ['{}', row(7, **none), row(120), row(200, **none), row(201)]),
    )
  )


def test_the_same_as_without_beam(sources, tmp_path):
  cfg = Config(
    name='numbers',
    out=str(tmp_path / 'out'),
    splits={
      'train': Split(
        sources, dataset='d', drop_answers=('none',), max_records=50, seed=3
      )
    },
    max_passages=3,
    on_bad_record='skip',
  )
  (local, local_account), (beam, account) = both(cfg)
  # One shard: the same bytes.
  assert beam.fingerprint == local.fingerprint
  assert list(beam) == list(local)
  assert len(beam) == 50
  assert account['fingerprint'] == local_account['fingerprint']
  assert account['splits'] == local_account['splits']
  train = account['splits']['train']
  assert train['skipped'] == 4
  assert train['no_answer'] == 1
  assert train['not_drawn'] == 32
  assert train['passages_cut'] == 50
  # All three files have ids that another one has too.
  assert {r.id.partition('/')[0] for r in beam} == {'a', 'c'}
  assert {r.id for r in beam if r.question == 'Again?'} <= {'a/r5'}
  listed = pathlib.Path(beam.path, 'skipped-train.txt').read_text()
  lines = listed.splitlines()
  assert len(lines) == 4
  assert lines[0].startswith(f'{sources[0]}:41: line: found no JSON')
  assert (
    f'{sources[2]}: record 2: id: found r120, which record 22 of {sources[1]} '
    'has too, expected an id of its own'
  ) in lines


def test_several_shards_in_the_same_order(sources, tmp_path):
  cfg = Config(
    name='numbers',
    out=str(tmp_path / 'out'),
    splits={'train': Split(sources[:1])},
    on_bad_record='skip',
    num_shards=3,
  )
  (local, _), (beam, account) = both(cfg)
  assert len(account['splits']['train']['shards']) == 3
  assert list(beam) == list(local)


def test_the_first_bad_record_of_all_files(sources, tmp_path):
  cfg = Config(
    name='numbers',
    out=str(tmp_path / 'out'),
    splits={'train': Split(sources)},
    runner='beam',
  )
  with pytest.raises(
    errors.UserError, match=r'c\.jsonl:41: .* 2 records of .* are bad'
  ):
    build_command.build(cfg)
  assert not list((tmp_path / 'out').iterdir())


def test_a_file_that_cannot_be_read(sources, tmp_path):
  broken = tmp_path / 'broken.jsonl.gz'
  broken.write_bytes(b'\x1f\x8b\x08 not gzip')
  cfg = Config(
    name='numbers',
    out=str(tmp_path / 'out'),
    splits={'train': Split((*sources, str(broken)))},
    on_bad_record='skip',
    runner='beam',
  )
  with pytest.raises(
    errors.UserError, match=r'broken\.jsonl\.gz: cannot be read to its end'
  ):
    build_command.build(cfg)
  assert not list((tmp_path / 'out').iterdir())
