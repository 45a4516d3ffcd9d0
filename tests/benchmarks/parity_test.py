"""The figures of the table of families."""

import importlib.util
import sys

import parity

from vtokens.models.families import registry

_SOURCE = """
from vtokens.models.families.family import About

class Other:
  about = About('other', 'nothing', 1e-05)

class Some:
  names = {}
  about = About(
    'some',
    'something',
    2e-06, 'not all'
  )
"""


def test_a_stated_figure_is_measured():
  stated = registry.families()['arcee'].about.difference
  assert stated / 2 < parity.difference('arcee') < 2 * stated


def test_a_figure_is_put_into_its_class(tmp_path, monkeypatch):
  file = tmp_path / 'some.py'
  file.write_text(_SOURCE)
  spec = importlib.util.spec_from_file_location('some', file)
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, 'some', module)
  spec.loader.exec_module(module)
  parity.write(module.Some, 3.21e-6)
  assert file.read_text() == _SOURCE.replace('2e-06', '3.2e-06')
