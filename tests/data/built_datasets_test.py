import json
import multiprocessing
import operator
import pathlib
import pickle
import shutil
import subprocess
import sys

import pytest

from vtokens.data import built_datasets
from vtokens.data.build import build_command, build_config
from vtokens.data.records import Passage, Record
from vtokens.host import errors


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def row(i):
  return {
    'id': f'r{i}',
    'dataset': 'even' if i % 2 == 0 else 'odd',
    'question': f'Which number is {i}?',
    'answers': [str(i)],
    'passages': {'bm25': [{'text': f'It is {i}.', 'score': 0.1}], 'none': []},
  }


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """A dataset of 30 + 4 records; tests must not change it."""
  directory = tmp_path_factory.mktemp('store')
  return build_command.build(
    build_config.Config(
      name='numbers',
      out=str(directory / 'out'),
      num_shards=3,
      splits={
        'train': build_config.Split(
          (write_jsonl(directory / 'train.jsonl', map(row, range(30))),)
        ),
        'test': build_config.Split(
          (write_jsonl(directory / 'test.jsonl', map(row, range(50, 54))),)
        ),
      },
    )
  )


@pytest.fixture
def copy(built, tmp_path):
  return pathlib.Path(shutil.copytree(built, tmp_path / 'copy'))


def test_random_access(built):
  records = built_datasets.RecordStore(built, 'train')
  assert len(records) == 30
  assert sorted(r.id for r in records) == sorted(f'r{i}' for i in range(30))
  assert [records[i] for i in range(30)] == list(records)
  assert records[-1] == records[29]
  by_id = {record.id: record for record in records}
  assert by_id['r7'] == Record(
    'r7',
    'odd',
    'Which number is 7?',
    ('7',),
    {'bm25': (Passage('', '', 'It is 7.', 0.1),), 'none': ()},
  )
  for index in (30, -31):
    with pytest.raises(IndexError):
      records[index]


def test_what_is_known_without_reading_shards(copy):
  for file in copy.glob('*.array_record-*'):
    if file.suffix != '.sha256':
      file.write_bytes(bytes(file.stat().st_size))
  records = built_datasets.RecordStore(str(copy), 'train')
  assert len(records) == 30
  assert records.datasets == {'even': 15, 'odd': 15}
  assert len(records.fingerprint) == 64


def test_fingerprints_are_those_of_the_content(built, copy):
  train = built_datasets.RecordStore(built, 'train').fingerprint
  assert built_datasets.RecordStore(str(copy), 'train').fingerprint == train
  assert built_datasets.RecordStore(built, 'test').fingerprint != train


def test_other_processes_open_it_anew(built):
  records = built_datasets.RecordStore(built, 'train')
  again = pickle.loads(pickle.dumps(records))
  assert (again.fingerprint, list(again)) == (
    records.fingerprint,
    list(records),
  )
  context = multiprocessing.get_context('spawn')
  with context.Pool(1) as pool:
    assert pool.apply(operator.getitem, (records, 5)) == records[5]


def test_sources(built):
  directory = str(pathlib.Path(built).parent)
  for source in (
    f'records:{built}:test',
    f'records:{directory}:test',
    f'records:{directory}/:test',
  ):
    assert built_datasets.open_store(source).path == built
    assert len(built_datasets.open_store(source)) == 4
  with pytest.raises(errors.UserError, match=r"which split.*'train', 'test'"):
    built_datasets.open_store(f'records:{built}')
  with pytest.raises(errors.UserError, match="no split 'dev'"):
    built_datasets.open_store(f'records:{built}:dev')
  with pytest.raises(errors.UserError, match='expected records:DIR'):
    built_datasets.open_store(built)


def test_the_only_split_needs_no_name(tmp_path):
  path = build_command.build(
    build_config.Config(
      name='one',
      out=str(tmp_path / 'with:colon'),
      splits={
        'test': build_config.Split(
          (write_jsonl(tmp_path / 'a.jsonl', [row(1)]),)
        )
      },
    )
  )
  assert len(built_datasets.open_store(f'records:{path}')) == 1
  assert built_datasets.open_store(f'records:{path}:test')[0].id == 'r1'


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ('records:a/b', ('a/b', '')),
    ('records:a/b:test', ('a/b', 'test')),
    ('records:a:b/c', ('a:b/c', '')),
    ('records:gs://bucket/nq', ('gs://bucket/nq', '')),
    ('records:gs://bucket/nq:train', ('gs://bucket/nq', 'train')),
  ],
)
def test_forms_of_a_source(source, expected):
  assert built_datasets.parse_source(source) == expected


def test_no_dataset(tmp_path):
  with pytest.raises(errors.UserError, match='found none'):
    built_datasets.RecordStore(str(tmp_path), 'train')
  with pytest.raises(errors.UserError, match='no dataset of records here'):
    built_datasets.RecordStore(str(tmp_path / 'absent'), 'train')


def test_unfinished_dataset(copy):
  (copy / built_datasets.MANIFEST).unlink()
  with pytest.raises(errors.UserError, match=r'with build\.json'):
    built_datasets.RecordStore(str(copy), 'train')


def test_several_versions(built, tmp_path):
  for version in ('1.0.0', '1.0.1'):
    shutil.copytree(built, tmp_path / version)
  with pytest.raises(errors.UserError, match=r'several: 1\.0\.0, 1\.0\.1'):
    built_datasets.RecordStore(str(tmp_path), 'train')


@pytest.mark.parametrize('text', ['{', '{}', '[]', '{"format": 1}'])
def test_damaged_manifest(copy, text):
  (copy / built_datasets.MANIFEST).write_text(text)
  with pytest.raises(
    errors.UserError, match=r'build\.json: .*; build it again with'
  ):
    built_datasets.RecordStore(str(copy), 'train')


def test_changed_manifest(copy):
  text = (copy / built_datasets.MANIFEST).read_text()
  values = json.loads(text)
  number = values['splits']['train']['shards'][0]['num_records']
  assert number > 1
  changed = text.replace(f'"num_records": {number},', '"num_records": 1,', 1)
  assert changed != text
  (copy / built_datasets.MANIFEST).write_text(changed)
  with pytest.raises(errors.UserError, match=r'build\.json: .* has changed'):
    built_datasets.RecordStore(str(copy), 'train')
  # One of an earlier version.
  del values['sha256_of_the_rest']
  (copy / built_datasets.MANIFEST).write_text(json.dumps(values))
  assert len(built_datasets.RecordStore(str(copy), 'test')) == 4


def test_format_of_another_version(copy):
  values = json.loads((copy / built_datasets.MANIFEST).read_text())
  (copy / built_datasets.MANIFEST).write_text(
    json.dumps({**values, 'format': 2})
  )
  with pytest.raises(errors.UserError, match='format 2, this version reads 1'):
    built_datasets.RecordStore(str(copy), 'train')


def shard(path, split='train'):
  return next(path.glob(f'*-{split}.array_record-00001-of-00003'))


def test_missing_shard(copy):
  shard(copy).unlink()
  with pytest.raises(errors.UserError, match=r'00001-of-00003: .* is missing'):
    built_datasets.RecordStore(str(copy), 'train')
  assert len(built_datasets.RecordStore(str(copy), 'test')) == 4


def test_truncated_shard(copy):
  content = shard(copy).read_bytes()
  shard(copy).write_bytes(content[:-1])
  with pytest.raises(
    errors.UserError, match=f'{len(content) - 1:,} bytes, expected'
  ):
    built_datasets.RecordStore(str(copy), 'train')


def test_changed_shard(copy):
  content = bytearray(shard(copy).read_bytes())
  content[200] ^= 1
  shard(copy).write_bytes(content)
  with pytest.raises(errors.UserError, match=r'SHA-256 .* changed or damaged'):
    built_datasets.verify(built_datasets.read_manifest(str(copy)))


def test_unreadable_records(copy):
  for file in copy.glob('*-train.array_record-*-of-00003'):
    file.write_bytes(bytes(file.stat().st_size))
  records = built_datasets.RecordStore(str(copy), 'train')
  with pytest.raises(errors.UserError, match='record 3 of the split train'):
    records[3]


def test_checksums_are_those_of_sha256sum(copy):
  sums = sorted(copy.glob('*.sha256'))
  assert len(sums) == 6
  check = ['sha256sum', '--check', '--quiet', *(file.name for file in sums)]
  assert subprocess.run(check, cwd=copy).returncode == 0
  shard(copy).write_bytes(b'x')
  done = subprocess.run(check, cwd=copy, capture_output=True, text=True)
  assert done.returncode != 0 and 'FAILED' in done.stdout


def test_importing_it_is_cheap():
  code = (
    'import sys; from vtokens.data import built_datasets; '
    "print({'jax', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules))"
  )
  output = subprocess.check_output([sys.executable, '-c', code], text=True)
  assert output == 'set()\n'
