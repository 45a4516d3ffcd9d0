"""The `--config` flag, and errors that reach the user as one message."""

import difflib
import shlex
import sys
import typing
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from vtokens import config as config_lib
from vtokens import errors


def define_config() -> flags.FlagHolder:
  """Defines `--config FILE` and `--config.section.field=value`."""
  return config_flags.DEFINE_config_file(
    'config', None, 'Python file with get_config() -> vtokens.config.Config.'
  )


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command line program; a `UserError` is printed and exits with 1."""

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      _check_names(argv)
      return app.parse_flags_with_usage(list(argv))
    except errors.UserError as e:
      _fail(e)
    # ml_collections raises these out of the parsing of a nested field.
    except (FileNotFoundError, KeyError, TypeError, ValueError) as e:
      _fail(f'{type(e).__name__}: {e}')

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      _fail(f'unexpected arguments: {" ".join(argv[1:])}')
    try:
      main(argv)
    except errors.UserError as e:
      _fail(e)

  # Orbax tells each of its steps at INFO.
  logging.set_verbosity(logging.WARNING)
  app.run(guarded, flags_parser=parse)


def config_of(flag: flags.FlagHolder) -> config_lib.Config:
  """The parsed config, validated.

  Raises:
    errors.UserError: there is none, or it is not valid.
  """
  config = flag.value
  if config is None:
    raise errors.UserError('--config FILE is needed, e.g. configs/quickstart.py')
  if not isinstance(config, config_lib.Config):
    raise errors.UserError(
      f'--config: get_config() returned {type(config).__name__}, expected '
      'vtokens.config.Config'
    )
  config_lib.validate(config)
  return config


def command_line(module: str) -> str:
  """The command that started this program, to be typed again."""
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


def _check_names(argv: Sequence[str]) -> None:
  """Refuses `--config.a.b` where there is no such field, with a suggestion.

  ml_collections itself would end in a traceback.
  """
  for arg in argv[1:]:
    name = arg.lstrip('-').split('=')[0]
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    section: type = config_lib.Config
    for part in name.split('.')[1:]:
      fields = typing.get_type_hints(section) if section else {}
      if part not in fields:
        close = difflib.get_close_matches(part, fields, n=1)
        raise errors.UserError(
          f'--{name}: no field {part!r}'
          + (f'; did you mean {close[0]!r}?' if close else '')
          + (f' (fields: {", ".join(fields)})' if fields else '')
        )
      kind = fields[part]
      section = kind if kind.__module__ == config_lib.__name__ else None
    if section is not None:
      raise errors.UserError(
        f'--{name}: a section, not a field; set one of '
        f'{", ".join(f"--{name}.{f}" for f in typing.get_type_hints(section))}'
      )


def _fail(message: object) -> typing.NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(1)
