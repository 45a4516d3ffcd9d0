"""The configs of configs/eval/."""

import pathlib
import runpy

import pytest

from vtokens.data import formats
from vtokens.data.checks import BadRecords
from vtokens.evaluation import eval_config
from vtokens.host import paths

FILES = sorted((pathlib.Path(__file__).parents[2] / 'configs/eval').glob('*'))


def load(name: str) -> eval_config.Config:
  [path] = [path for path in FILES if path.stem == name]
  return runpy.run_path(str(path))['get_config']()


@pytest.mark.parametrize('name', [path.stem for path in FILES])
def test_is_valid(name):
  eval_config.validate(load(name))


@pytest.mark.parametrize('name', ['quickstart', 'open_qa'])
def test_its_questions_are_shipped_and_have_what_it_asks_for(name):
  cfg = load(name)
  report = BadRecords('error', max_text_bytes=cfg.data.max_text_bytes)
  [source] = cfg.data.sources
  records = list(formats.read_records([paths.resolve(source)], report=report))
  assert len(records) == {'quickstart': 300, 'open_qa': 350}[name]
  most = max(cfg.num_passages)
  for record in records:
    for retriever in cfg.retrievers:
      assert len(record.ranked(retriever)) >= most, record.id


def test_the_papers_axes():
  cfg = load('paper')
  assert cfg.num_passages[0] == 3
  assert sorted(cfg.num_passages) == [0, 1, 2, 3, 4, 5]
  assert cfg.num_active[0] == max(cfg.num_active) == 50
  assert len(cfg.retrievers) == 4
  assert len(cfg.data.sources) == 12
