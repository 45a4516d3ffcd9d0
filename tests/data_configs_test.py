"""The files in configs/data/."""

import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from vtokens import recipes
from vtokens.data import built_datasets
from vtokens.data.build import build_config
from vtokens.host import errors
from vtokens.recipes import spring_data

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT / 'configs/data'
# Not data sets of the paper.
OTHERS = {'example', 'paper_mix'}
SETS = sorted(
  path.stem for path in DATA.glob('*.py') if path.stem not in OTHERS
)
# arXiv 2405.19670v3, table 5: training and test questions.
SIZES = {
  'triviaqa': (78_785, 11_313),
  'nq': (79_168, 3_610),
  'hotpotqa': (90_447, 7_405),
  'squad': (87_599, 10_570),
  'webquestions': (3_778, 2_032),
  'wikimultihop': (15_000, 12_576),
  'coqa': (7_199, 500),
  'msmarco': (80_000, 55_636),
  'popqa': (None, 14_267),
  # In the conference version only, which gives no sizes.
  'fermi': (None, 0),
  'musique': (None, 0),
  'bamboogle': (None, 0),
}


def load(name):
  return runpy.run_path(str(DATA / f'{name}.py'))


def test_there_is_a_file_for_each_set():
  assert set(SETS) == set(SIZES)
  assert set(spring_data.TRAIN) == {
    n for n, (train, _) in SIZES.items() if train
  }
  assert set(spring_data.TEST) == set(SIZES)
  assert sum(train or 0 for train, _ in SIZES.values()) == (
    recipes.PAPER_QUESTIONS
  )


@pytest.mark.parametrize('variant', spring_data.VARIANTS)
@pytest.mark.parametrize('name', SETS)
def test_sizes_are_the_papers(name, variant):
  cfg = load(name)['get_config'](variant)
  build_config.validate(cfg)
  found = {
    split: section.expected_records for split, section in cfg.splits.items()
  }
  train, test = SIZES[name]
  expected = {'test': test} if train is None else {'train': train, 'test': test}
  assert found == expected
  assert {section.dataset for section in cfg.splits.values()} == {name}


@pytest.mark.parametrize('name', SETS)
def test_files_are_documented(name):
  documented = (ROOT / 'docs/data.md').read_text()
  cfg = load(name)['get_config']('raw')
  for section in cfg.splits.values():
    for source in section.sources:
      assert source.removeprefix(f'{spring_data.RAW}/') in documented


def test_no_two_share_a_file_or_a_name():
  configs = [
    load(name)['get_config'](variant)
    for name in SETS
    for variant in spring_data.VARIANTS
  ]
  sources = [s for c in configs for x in c.splits.values() for s in x.sources]
  assert len(set(sources)) == len(sources)
  assert len({cfg.name for cfg in configs}) == len(configs)


def test_other_variants():
  with pytest.raises(errors.UserError, match="no variant 'all'"):
    load('nq')['get_config']('all')


def test_paper_mix_names_what_the_others_build():
  train, test = load('paper_mix')['get_sources']()
  assert (len(train), len(test)) == (8, 12)
  for sources, split in ((train, 'train'), (test, 'test')):
    for source in sources:
      path, found = built_datasets.parse_source(source)
      cfg = load(pathlib.Path(path).name)['get_config']()
      assert found == split and split in cfg.splits
      assert path == f'{cfg.out}/retrieval_qa/{cfg.name}'


def test_example(tmp_path):
  """As the documentation runs it."""
  command = [sys.executable, '-m', 'vtokens.data.build']
  done = subprocess.run(
    [*command, '--config', DATA / 'example.py'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  source = done.stdout.split('use it as ')[1].strip()
  records = built_datasets.open_store(
    str(source).replace(':data', f':{tmp_path}/data')
  )
  assert len(records) == 3_000
  assert records.datasets == {'entityquestions': 1_500, 'squad': 1_500}


def test_a_size_that_is_not_the_papers_is_refused(tmp_path):
  source = tmp_path / 'data/retrieved/fermi.test.jsonl.gz'
  source.parent.mkdir(parents=True)
  example = ROOT / 'vtokens/data/quickstart/test.jsonl.gz'
  source.write_bytes(example.read_bytes())
  source.with_name('popqa.test.jsonl.gz').write_bytes(example.read_bytes())
  command = [sys.executable, '-m', 'vtokens.data.build', '--config']
  for name, code, message in (
    ('fermi', 0, 'test: 300 records'),
    ('popqa', 1, 'splits[test]: 300 records, expected_records says 14,267'),
  ):
    done = subprocess.run(
      [*command, DATA / f'{name}.py'],
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
    )
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
