"""Tests of vtokens.settings.config_file: configs that are written."""

import pathlib
import runpy

import pytest

from vtokens import config
from vtokens.settings import config_file

_CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def _again(cfg, tmp_path, about='About.'):
  path = tmp_path / 'again.py'
  path.write_text(config_file.write(cfg, about), encoding='utf-8')
  return config_file.load(str(path), type(cfg))


@pytest.mark.parametrize(
  'path',
  [
    path
    for path in sorted(_CONFIGS.glob('**/*.py'))
    if 'def get_config' in path.read_text(encoding='utf-8')
  ],
  ids=lambda path: path.name,
)
def test_what_is_written_is_read_again(path, tmp_path):
  cfg = runpy.run_path(str(path))['get_config']()
  assert _again(cfg, tmp_path) == cfg


def test_any_value(tmp_path):
  passages = config.Passages(number=(0, 2), retrievers=('a', 'b"c'))
  cfg = config.Config(
    workdir='a\'b"c\\d\n\t\u00e9',
    templates=config.Templates(prompt='"""{question}\n\\', chat=True),
    data=config.Data(
      train=('one',),
      mixture=config.Mixture(
        weights={'x y': 0.1}, passages={'p': passages, 'q': config.Passages()}
      ),
      shapes=((1, 2), (3, 4)),
    ),
    optim=config.Optim(eps=1e-30),
  )
  about = 'Of "this" \\ and """that"""'
  assert _again(cfg, tmp_path, about) == cfg
  text = (tmp_path / 'again.py').read_text(encoding='utf-8')
  assert compile(text, 'x', 'exec').co_consts[0] == about


def test_defaults_are_left_out(tmp_path):
  text = config_file.write(config.Config(seed=3), 'About.')
  assert text == (
    '"""About."""\n\nfrom vtokens import config\n\n\n'
    'def get_config() -> config.Config:\n'
    '  return config.Config(\n    seed=3,\n  )\n'
  )
