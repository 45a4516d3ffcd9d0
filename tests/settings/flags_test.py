"""Tests of vtokens.settings.flags."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from vtokens import config

_ROOT = pathlib.Path(__file__).parents[2]
_ENV = {**os.environ, 'PYTHONPATH': str(_ROOT), 'COLUMNS': '80'}

# Imports nothing heavy, so that each command line can have its own process.
_PROGRAM = '''
"""Does what is asked."""

import json
import pathlib

from vtokens import config
from vtokens.host import errors
from vtokens.settings import flags, schema


def main(cfg):
  pathlib.Path(cfg.workdir).mkdir()
  if cfg.base.path == 'missing':
    raise errors.UserError('config.base.path: missing\\nsecond line')
  if cfg.base.path == 'bug':
    raise RuntimeError('a bug')
  print(json.dumps(schema.to_dict(cfg)))
  print(flags.command_line())


if __name__ == '__main__':
  flags.run_config(main, config.Config, config.validate, 'configs/x.py')
'''

_GOOD = """
from vtokens import config


def get_config():
  return config.Config(
    workdir='run',
    base=config.Base(path='b'),
    data=config.Data(train=('t.jsonl',)),
  )
"""

_FILES = {
  'program.py': _PROGRAM,
  'good.py': _GOOD,
  'no_function.py': 'x = 1\n',
  'no_config.py': 'def get_config():\n  return {"seed": 1}\n',
  'no_syntax.py': 'x = 1\ndef get_config(:\n  pass\n',
  'no_import.py': 'import no_such_module\n',
  'no_field.py': _GOOD.replace('workdir', 'workdirr'),
  'raises.py': 'def get_config():\n  raise KeyError("boom")\n',
  'raises_value.py': 'def get_config():\n  return int("many")\n',
  'not_valid.py': _GOOD.replace("'run'", '3'),
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('flags')
  for name, content in _FILES.items():
    (directory / name).write_text(content.lstrip(), encoding='utf-8')
  return directory


def _run(directory, *args):
  return subprocess.run(
    [sys.executable, *args],
    cwd=directory,
    env=_ENV,
    capture_output=True,
    text=True,
    timeout=120,
  )


def _assert_error(done, directory, *parts):
  """One message on standard error, and nothing else has happened."""
  assert done.returncode == 1, done.stderr
  assert done.stdout == ''
  assert done.stderr.startswith('error: '), done.stderr
  assert done.stderr.count('error: ') == 1
  assert 'Traceback' not in done.stderr
  for part in parts:
    assert part in done.stderr
  assert not (directory / 'run').exists()


_ERRORS = {
  # No config.
  'none': ([], '--config FILE is needed'),
  'no file name': (['--config'], 'Missing value for flag --config'),
  'missing file': (['--config=no.py'], '--config no.py: cannot be read: No'),
  'directory': (['--config=.'], '--config .: is a directory, expected a file'),
  'device': (['--config=/dev/zero'], '--config /dev/zero: is a device'),
  # A bad config file.
  'no function': (['--config=no_function.py'], 'no function get_config()'),
  'no config': (['--config=no_config.py'], 'get_config() returned dict'),
  'no syntax': (['--config=no_syntax.py'], 'no_syntax.py:2: SyntaxError'),
  'no import': (['--config=no_import.py'], "No module named 'no_such_module'"),
  'no field': (['--config=no_field.py'], 'no_field.py:5: TypeError: ', 'dirr'),
  'raises': (['--config=raises.py'], "raises.py:2: KeyError: 'boom'"),
  'raises ValueError': (
    ['--config=raises_value.py'],
    'raises_value.py:2: ValueError: ',
    "'many'",
  ),
  'not valid': (
    ['--config=not_valid.py'],
    'error: config.workdir: expected a string, got 3 (in not_valid.py)',
  ),
  # A bad field.
  'unknown field': (
    ['--config=good.py', '--config.optim.learningrate=1'],
    "--config.optim.learningrate: no field 'learningrate'; did you mean "
    "'learning_rate'?",
    'warmup_steps',
  ),
  'unknown field with a space': (
    ['--config', 'good.py', '--config.sed', '1'],
    "--config.sed: no field 'sed'; did you mean 'seed'?",
  ),
  'unknown section': (
    ['--config=good.py', '--config.optimizer.b1=0.5'],
    "--config.optimizer.b1: no field 'optimizer'; did you mean 'optim'?",
  ),
  'field of a field': (
    ['--config=good.py', '--config.seed.x=1'],
    "--config.seed.x: no field 'x'",
  ),
  'unknown switch': (
    ['--config=good.py', '--noconfig.train.rematt'],
    "--config.train.rematt: no field 'rematt'; did you mean 'remat'?",
  ),
  'dict': (
    ['--config=good.py', "--config.data.mixture.weights={'nq': 1}"],
    '--config.data.mixture.weights: config.data.mixture.weights is a dict, '
    'which only the config file can set',
  ),
  'entry of a dict': (
    ['--config=good.py', '--config.data.mixture.max_examples.nq=1'],
    '--config.data.mixture.max_examples.nq: config.data.mixture.max_examples '
    'is a dict, which only the config file can set',
  ),
  'field of a section in a dict': (
    ['--config=good.py', '--config.data.mixture.passages.nq.depth=9'],
    '--config.data.mixture.passages.nq.depth: config.data.mixture.passages is '
    'a dict, which only the config file can set',
  ),
  'section in a section': (
    ['--config=good.py', '--config.data.passages=3'],
    '--config.data.passages: a section, not a field; set one of '
    '--config.data.passages.number, ',
  ),
  'field of a section in a section': (
    ['--config=good.py', '--config.data.passages.numbers=(1,2)'],
    "--config.data.passages.numbers: no field 'numbers'; did you mean "
    "'number'?",
  ),
  'section': (
    ['--config=good.py', '--config.mesh=3'],
    '--config.mesh: a section, not a field; set one of --config.mesh.shape',
  ),
  'before the file': (
    ['--config.seed=1', '--config=good.py'],
    '--config.seed: --config FILE is needed before it',
  ),
  # A bad value.
  'not a float': (
    ['--config=good.py', '--config.optim.learning_rate=abc'],
    '--config.optim.learning_rate=abc',
    'float',
  ),
  'not an int': (
    ['--config=good.py', '--config.train.num_steps=1.5'],
    '--config.train.num_steps=1.5',
    'int',
  ),
  'not a bool': (
    ['--config=good.py', '--config.train.remat=maybe'],
    '--config.train.remat=maybe',
    'boolean',
  ),
  'not a tuple of int': (
    ['--config=good.py', '--config.eval.num_active=a,b'],
    'config.eval.num_active: expected a tuple of integers >= 1, got ',
  ),
  'NaN': (
    ['--config=good.py', '--config.optim.learning_rate=nan'],
    'config.optim.learning_rate: expected a finite number, got nan',
  ),
  'no value': (
    ['--config=good.py', '--config.workdir'],
    'Missing value for flag --config.workdir',
  ),
  'impossible combination': (
    [
      '--config=good.py',
      '--config.data.batch_size=8',
      '--config.train.accumulation_steps=3',
    ],
    'config.data.batch_size: expected a multiple of '
    'train.accumulation_steps=3 times data.examples_per_row=1, got 8',
  ),
  # Anything else.
  'unknown flag': (['--config=good.py', '--lr=1'], "'lr'"),
  'bytes that are no text': (
    ['--config=good.py', b'--config.workdir=w\xff'],
    r"argument 2: b'--config.workdir=w\xff' is not valid UTF-8",
  ),
  'argument': (['--config=good.py', 'x', 'y'], 'unexpected arguments: x, y'),
}


@pytest.mark.parametrize(
  'args, parts', [(a, p) for a, *p in _ERRORS.values()], ids=list(_ERRORS)
)
def test_mistake_is_one_message(directory, args, parts):
  _assert_error(_run(directory, 'program.py', *args), directory, *parts)


def test_error_of_the_program(directory, tmp_path):
  done = _run(
    directory,
    'program.py',
    '--config=good.py',
    '--config.base.path=missing',
    f'--config.workdir={tmp_path / "run"}',
  )
  assert done.returncode == 1
  assert done.stderr == 'error: config.base.path: missing\nsecond line\n'


def test_bug_of_the_program_shows_where(directory, tmp_path):
  done = _run(
    directory,
    'program.py',
    '--config=good.py',
    '--config.base.path=bug',
    f'--config.workdir={tmp_path / "run"}',
  )
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert 'RuntimeError: a bug' in done.stderr


def test_overrides(directory, tmp_path):
  args = [
    '--config',
    'good.py',
    '--config.workdir',
    str(tmp_path / 'a b'),
    '--config.seed=7',
    '--config.optim.learning_rate=3e-3',
    '--config.optim.clip_norm=2',
    '--config.virtual_tokens.init=vocab',
    '--config.train.remat',
    '--noconfig.data.mixture.remove_leaks',
    '--config.eval.stop_at_newline=false',
    '--config.eval.num_active=1,5',
    '--config.eval.conditions=()',
    '--config.data.passages.number=(2, 3)',
    "--config.data.passages.retrievers=('bm25', 'dense')",
    '--config.data.max_prefix_tokens=128',
    '--config.data.shapes=((64, 96), (128, 160))',
    '--config.data.train=a.jsonl',
    '--config.data.train=b.jsonl.gz',
  ]
  done = _run(directory, 'program.py', *args)
  assert done.returncode == 0, done.stderr
  shown, command = done.stdout.splitlines()
  got = config.from_dict(json.loads(shown))
  expected = config.Config(
    workdir=str(tmp_path / 'a b'),
    seed=7,
    base=config.Base(path='b'),
    virtual_tokens=config.VirtualTokens(init='vocab'),
    data=config.Data(
      train=('a.jsonl', 'b.jsonl.gz'),
      passages=config.Passages(number=(2, 3), retrievers=('bm25', 'dense')),
      mixture=config.Mixture(remove_leaks=False),
      max_prefix_tokens=128,
      shapes=((64, 96), (128, 160)),
    ),
    optim=config.Optim(learning_rate=3e-3, clip_norm=2.0),
    train=config.Train(remat=True),
    eval=config.Eval(stop_at_newline=False, num_active=(1, 5), conditions=()),
  )
  assert got == expected
  assert command.startswith('python program.py --config good.py ')
  assert f"--config.workdir '{tmp_path / 'a b'}'" in command


def test_tuple_in_parentheses(directory, tmp_path):
  done = _run(
    directory,
    'program.py',
    '--config=good.py',
    f'--config.workdir={tmp_path / "run"}',
    '--config.eval.num_active=(1,5)',
  )
  assert json.loads(done.stdout.splitlines()[0])['eval']['num_active'] == [1, 5]


def test_train_refuses_bad_flags(directory):
  done = _run(
    directory,
    '-m',
    'vtokens.train',
    '--config=good.py',
    '--config.optim.learningrate=1',
  )
  _assert_error(done, directory, "did you mean 'learning_rate'?")


def test_help(directory):
  done = _run(directory, '-m', 'vtokens.train', '--help')
  assert done.returncode == 0
  assert done.stderr == ''
  assert 'python -m vtokens.train --config configs/x.py' in done.stdout
  assert '--config.optim.learning_rate=3e-3' in done.stdout
  assert '--config: Python file with get_config()' in done.stdout
  # absl's and the libraries' own flags would bury it.
  assert len(done.stdout.splitlines()) < 30


_FULL = """
import errno, os
from vtokens.settings import flags

def main(unused_argv):
  number = getattr(errno, os.environ['PROBLEM'])
  raise OSError(number, os.strerror(number), 'runs/x/metrics.jsonl')

flags.run(main)
"""


def _raise(directory, problem):
  return subprocess.run(
    [sys.executable, '-c', _FULL],
    cwd=directory,
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'PROBLEM': problem},
    capture_output=True,
    text=True,
  )


def test_a_full_disk_is_one_line(tmp_path):
  done = _raise(tmp_path, 'ENOSPC')
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith(
    'error: runs/x/metrics.jsonl cannot be written: No space left'
  )
  assert _raise(tmp_path, 'EIO').stderr == (
    'error: runs/x/metrics.jsonl: Input/output error\n'
  )


def test_home_on_the_command_line(directory, tmp_path):
  """A shell leaves `~` after `=` as it is."""
  (tmp_path / 'good.py').write_text(_GOOD)
  done = subprocess.run(
    [
      sys.executable,
      directory / 'program.py',
      '--config=~/good.py',
      '--config.workdir=~/out',
      "--config.data.train=('records:~/built:train', '~/t.jsonl')",
    ],
    cwd=directory,
    env={**_ENV, 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'out').is_dir() and not (directory / '~').exists()
  values = json.loads(done.stdout.splitlines()[0])
  assert values['workdir'] == f'{tmp_path}/out'
  assert values['data']['train'] == [
    f'records:{tmp_path}/built:train',
    f'{tmp_path}/t.jsonl',
  ]


_PATH_FLAG = """
from vtokens.settings import flags

PLACE = flags.define_path('place', None, 'Where.')
flags.run(lambda unused_argv: print(PLACE.value))
"""


@pytest.mark.parametrize(
  'given, expected',
  [
    (['--place=~/x'], '/home/me/x\n'),
    (['--place', '~'], '/home/me\n'),
    (['--place=a~'], 'a~\n'),
    ([], 'None\n'),
  ],
)
def test_home_in_a_flag(given, expected, tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _PATH_FLAG, *given],
    env={**_ENV, 'HOME': '/home/me'},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_home_of_nobody_in_a_flag(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _PATH_FLAG, '--place=~no_such_user/x'],
    env=_ENV,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: ~no_such_user/x: the home directory')
