"""Tests of the program `vtokens`, and of the package that is installed."""

import os
import pathlib
import subprocess
import sys

import pytest

import vtokens
from vtokens import commands

_ROOT = pathlib.Path(__file__).parents[1]
# As its console script does.
_SCRIPT = 'import sys; from vtokens import commands; sys.argv[0] = "vtokens"; '
_PROGRAMS = {
  'module': ['-m', 'vtokens'],
  'script': ['-c', _SCRIPT + 'commands.main()'],
}


def _run(program, *arguments, cwd=_ROOT, root=_ROOT):
  return subprocess.run(
    [sys.executable, *program, *arguments],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(root), 'COLUMNS': '80'},
    capture_output=True,
    text=True,
    timeout=120,
  )


def _built(place):
  """The files of a wheel, in a directory of their own."""
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', place],
    cwd=_ROOT,
    check=True,
    capture_output=True,
  )
  return place


@pytest.mark.parametrize('program', _PROGRAMS.values(), ids=_PROGRAMS)
class TestProgram:
  def test_help_lists_all_commands(self, program):
    done = _run(program, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    for name, (_, what) in commands.COMMANDS.items():
      assert f'  {name} ' in done.stdout
      assert what in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())

  def test_version(self, program):
    done = _run(program, '--version')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f'vtokens {vtokens.__version__}\n'

  @pytest.mark.parametrize(
    'arguments, message',
    [
      (['trian'], "no command 'trian'; did you mean 'train'? (commands: train"),
      (['--config=x'], "no command '--config=x' (commands: "),
      ([], 'usage: vtokens COMMAND'),
    ],
  )
  def test_no_such_command(self, program, arguments, message):
    done = _run(program, *arguments)
    assert (done.returncode, done.stdout) == (1, '')
    assert message in done.stderr
    assert 'Traceback' not in done.stderr

  def test_mistakes_are_those_of_the_module(self, program, tmp_path):
    arguments = ['--config', 'none.py', '--config.out=x']
    expected = _run(['-m', 'vtokens.data.build'], *arguments, cwd=tmp_path)
    done = _run(program, 'build', *arguments, cwd=tmp_path)
    assert expected.returncode == 1 and 'error: --config' in expected.stderr
    for name in ('returncode', 'stdout', 'stderr'):
      assert getattr(done, name) == getattr(expected, name)


def test_all_programs_are_commands():
  """Every module that can be run, but for those that users do not run."""
  found = set()
  for path in (_ROOT / 'vtokens').rglob('*.py'):
    text = path.read_text()
    if '\n  flags.run(' in text or '\n  flags.run_config(' in text:
      parts = path.relative_to(_ROOT).with_suffix('').parts
      found.add('.'.join(p for p in parts if p != '__main__'))
  assert found == {module for module, _ in commands.COMMANDS.values()}


def test_how_to_continue_is_said_as_the_command_was_typed(tmp_path):
  """Of both programs: a run that cannot write says how to go on."""
  code = (
    'import sys; from vtokens import commands\n'
    'commands.COMMANDS["show"] = ("show", "")\n'
    'sys.argv = [{!r}, "show", "--a", "b c"]\ncommands.main()\n'
  )
  (tmp_path / 'show.py').write_text(
    'from vtokens.settings import flags\nprint(flags.command_line())\n'
  )
  for argv0, start in (
    ('/venv/bin/vtokens', 'vtokens show'),
    ('/x/vtokens/__main__.py', 'python -m vtokens show'),
  ):
    done = _run(['-c', code.format(argv0)], cwd=tmp_path)
    assert done.stdout == f"{start} --a 'b c'\n", done.stderr
  done = _run(['-m', 'show'], '--a', 'b c', cwd=tmp_path)
  assert done.stdout == "python -m show --a 'b c'\n", done.stderr


def test_nothing_heavy_is_imported_to_tell_the_commands():
  code = (
    'import sys; from vtokens import commands; sys.argv = ["vtokens", "--help"]'
    '; commands.main(); print([m for m in sys.modules if m.partition(".")[0] '
    'in ("absl", "etils", "jax", "numpy")])'
  )
  assert _run(['-c', code]).stdout.endswith('\n[]\n')


def test_the_version_is_written_once():
  done = _run(['setup.py', '-q', '--version'])
  assert done.stdout.split()[-1] == vtokens.__version__, done.stderr


def test_package_runs_from_any_directory(tmp_path):
  """The files of a wheel, without the repository."""
  root = _built(tmp_path / 'site')
  work = tmp_path / 'work'
  work.mkdir()
  assert (root / 'vtokens/py.typed').is_file()
  shipped = {p.relative_to(root / 'vtokens') for p in root.rglob('*.py')}
  for path in (_ROOT / 'configs').rglob('*.py'):
    assert path.relative_to(_ROOT) in shipped
  example = 'configs/data/example.py'
  done = _run(
    ['-m', 'vtokens'], 'build', '--config', example, cwd=work, root=root
  )
  assert done.returncode == 0, done.stderr
  assert 'train: 3,000 records' in done.stdout
  assert f'{root}/vtokens/{example}' in done.stderr
  # A file of the user's of the same name comes first.
  own = work / example
  own.parent.mkdir(parents=True)
  own.write_text('def get_config():\n  raise ValueError("mine")\n')
  done = _run(
    ['-m', 'vtokens'], 'build', f'--config={example}', cwd=work, root=root
  )
  assert done.returncode == 1
  assert done.stderr == f'error: --config {example}:2: ValueError: mine\n'


def test_configs_are_found_from_other_directories(tmp_path):
  """Beside the package, where it is not installed from a wheel."""
  arguments = ('build', '--config=configs/data/nq.py:none')
  done = _run(['-m', 'vtokens'], *arguments, cwd=tmp_path)
  assert done.returncode == 1
  assert f'of vtokens is used: {_ROOT}/configs/data/nq.py\n' in done.stderr
  assert "no variant 'none'" in done.stderr
  arguments = ('build', '--config=configs/data/none.py')
  done = _run(['-m', 'vtokens'], *arguments, cwd=tmp_path)
  assert done.stderr == (
    'error: --config configs/data/none.py: cannot be read: No such file or '
    'directory\n'
  )
