"""The program `vtokens`: `vtokens train ...` is `python -m vtokens.train ...`.

Imports nothing heavy, so that the list of commands comes at once.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

import vtokens

# Name: module, what it does.
COMMANDS = {
  'train': ('vtokens.train', 'train virtual tokens for a base, and score them'),
  'sweep': ('vtokens.sweep', 'find good settings: train candidates, compare'),
  'ask': ('vtokens.ask', 'answer questions with the tokens, or without'),
  'serve': ('vtokens.serve', 'serve tables over HTTP, with a page to try them'),
  'evaluate': ('vtokens.evaluate', 'compare tokens, prompts and bases; report'),
  'inspect': ('vtokens.data.inspect', 'show what training will see'),
  'build': ('vtokens.data.build', 'build a dataset of records from files'),
  'chunk': ('vtokens.chunk', 'cut text files into passages of a corpus'),
  'retrieve': ('vtokens.retrieve', 'find passages for questions in a corpus'),
  'plan': (
    'vtokens.plan',
    'tell whether a run fits a TPU slice or GPUs',
  ),
  'models': (
    'vtokens.list_models',
    'list supported models; tell whether a directory or file loads',
  ),
  'export': ('vtokens.export', 'write a table for servers, and check it'),
  'import-table': (
    'vtokens.import_table',
    'make a run from an export or a file of SPRING',
  ),
}

_HELP = """\
usage: vtokens COMMAND [flags]
       python -m vtokens COMMAND [flags]

{commands}

vtokens COMMAND --help lists the flags of a command, vtokens --version tells
the version. First run: vtokens train --config configs/quickstart.py
"""

# How this program was called, for messages that say how to call it again.
_called: list[str] = []


def main() -> None:
  """Runs the command that the command line names.

  Exits with the command's own status; with 1 where there is no such command.
  """
  name, *arguments = sys.argv[1:] or ['']
  if name in ('-h', '-help', '--help', '--helpshort', 'help'):
    _print(_help())
  elif name in ('-V', '-version', '--version'):
    _print(f'vtokens {vtokens.__version__}\n')
  elif name in COMMANDS:
    # Under `python -m` the path of a file, else that of the console script.
    of_script = os.path.basename(sys.argv[0]) != '__main__.py'
    program = ['vtokens'] if of_script else ['python', '-m', 'vtokens']
    _called[:] = [*program, name]
    sys.argv[1:] = arguments
    runpy.run_module(COMMANDS[name][0], run_name='__main__', alter_sys=True)
  elif not name:
    sys.stderr.write(_help())
    sys.exit(1)
  else:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    sys.exit(
      f'error: vtokens: no command {name!r:.200}{hint} (commands: '
      f'{", ".join(COMMANDS)})'
    )


def called() -> Sequence[str]:
  """The words before the flags with which `main` was called, or none."""
  return tuple(_called)


def _help() -> str:
  width = max(map(len, COMMANDS))
  lines = (f'  {name:<{width}}  {what}' for name, (_, what) in COMMANDS.items())
  return f'{vtokens.__doc__}\n\n' + _HELP.format(commands='\n'.join(lines))


def _print(text: str) -> None:
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except BrokenPipeError:
    # Python would write to it once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
