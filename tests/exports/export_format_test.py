"""An export format that is added from outside of the package."""

import json
import os
import pathlib
import subprocess
import sys

import family_models
import numpy as np
import pytest
import trained_runs

from vtokens import export
from vtokens.exports import card_recipes, export_format, shared_checks
from vtokens.exports.export_format import Format, Placement, Usage
from vtokens.exports.formats import FORMATS
from vtokens.host import errors
from vtokens.serving import plug

_ROOT = pathlib.Path(__file__).parents[2]


class CSVFormat(Format):
  """One line of numbers a token."""

  name = 'csv'
  library = 'vtokens'
  consumers = ('numpy',)

  def place(self, source, base_path):
    return Placement(source.table.meta.tokens)

  def write(self, job):
    np.savetxt(job.directory / 'table.csv', job.exported.table, '%.9g', ',')

  def check(self, job):
    read = np.loadtxt(job.directory / 'table.csv', np.float32, delimiter=',')
    return [shared_checks.same_values(read, job)]

  def usage(self, meta, dtype):
    return Usage(card_recipes.fill("table = numpy.loadtxt('table.csv')", meta))


@pytest.fixture
def run(tmp_path):
  family_models.save(tmp_path / 'base', 'llama2')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  return tmp_path / 'run'


def test_a_format_from_outside(run, tmp_path, monkeypatch):
  monkeypatch.setitem(FORMATS, 'csv', None)  # Taken out at the end.
  del FORMATS['csv']
  export_format.register(CSVFormat())
  export_format.register(CSVFormat())
  with monkeypatch.context() as patched:
    patched.setattr(
      CSVFormat,
      'write',
      lambda self, job: np.savetxt(
        job.directory / 'table.csv', job.exported.table + 1, '%.9g', ','
      ),
    )
    with pytest.raises(errors.UserError, match='the table as read again'):
      export.export(trained_runs.quick(run), 'csv', str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()
  export.export(trained_runs.quick(run), 'csv', str(tmp_path / 'out'))
  gate = json.loads((tmp_path / 'out/gate.json').read_text())
  assert gate['format'] == 'csv' and gate['passed']
  assert 'table.csv' in (tmp_path / 'out/README.md').read_text()
  assert plug.load(tmp_path / 'out').meta.num_trained == trained_runs.ROWS


def test_a_name_stands_for_one_format(monkeypatch):
  monkeypatch.setattr(CSVFormat, 'name', 'hf')
  with pytest.raises(errors.UserError, match='export format hf: '):
    export_format.register(CSVFormat())
  assert not isinstance(FORMATS['hf'], CSVFormat)


def test_the_command_lists_what_is_registered(tmp_path):
  """A format of another package, which an entry point names."""
  (tmp_path / 'ours.py').write_text(
    'from vtokens.exports.formats import vtokens_format\n'
    'class Ours(vtokens_format.VtokensFormat):\n'
    "  name = 'ours'\n"
  )
  info = tmp_path / 'ours-1.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text('Name: ours\nVersion: 1\n')
  (info / 'entry_points.txt').write_text(
    f'[{export_format.ENTRY_POINTS}]\nours = ours:Ours\n'
  )
  env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{_ROOT}'}
  # The package by itself, before vtokens.export.
  subprocess.run([sys.executable, '-c', 'import ours'], env=env, check=True)
  for to, said in (
    ('nothing', 'gguf, ours'),
    ('ours', '--out: a directory is needed'),
  ):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'vtokens.export'),
        *('--config.workdir=x', f'--to={to}'),
      ],
      cwd=tmp_path,
      env=env,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
