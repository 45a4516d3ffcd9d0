"""The `--config` flag, and errors that reach the user as one message."""

import difflib
import pathlib
import shlex
import sys
import traceback
import typing
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from vtokens import config as config_lib
from vtokens import errors

# `--help` lists a flag under the program that calls `define_config`.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder:
  """Defines `--config FILE[:VARIANT]` and `--config.section.field=value`."""
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    'Python file with get_config() -> vtokens.config.Config, e.g. '
    'configs/quickstart.py. FILE:VARIANT calls get_config(VARIANT), e.g. '
    'configs/mistral_7b.py:paper. Its fields are overridden by '
    '--config.section.field=value.',
  )
  # ml_collections' own shows mistakes in the file as tracebacks.
  flags.FLAGS['config'].parser = _FileParser()
  return holder


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command line program; a `UserError` is printed and exits with 1."""

  def parse(argv: Sequence[str]) -> list[str]:
    if {'-h', '-help', '--help', '--helpshort'} & set(argv[1:]):
      # absl's own exits with 1.
      app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
      _check_names(argv)
      return flags.FLAGS(list(argv))
    except (flags.Error, errors.UserError) as e:
      _fail(e)
    # ml_collections raises these out of the parsing of a nested field.
    except (AttributeError, KeyError, TypeError, ValueError) as e:
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
    raise errors.UserError(
      '--config FILE is needed, e.g. --config configs/quickstart.py'
    )
  config_lib.validate(config)
  return config


def command_line(module: str) -> str:
  """The command that started this program, to be typed again."""
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


class _FileParser(flags.ArgumentParser):
  """Runs a config file; its mistakes become one message with their line."""

  def parse(self, argument: str) -> config_lib.Config:
    path, variant = argument, None
    if ':' in argument and not pathlib.Path(argument).exists():
      path, _, variant = argument.rpartition(':')
    try:
      source = pathlib.Path(path).read_bytes()
    except OSError as e:
      raise errors.UserError(
        f'--config {path}: cannot be read: {e.strerror}'
      ) from e
    namespace: dict[str, typing.Any] = {'__name__': 'config', '__file__': path}
    try:
      exec(compile(source, path, 'exec'), namespace)
      if 'get_config' not in namespace:
        raise errors.UserError(
          f'--config {path}: has no function get_config() -> '
          'vtokens.config.Config'
        )
      arguments = [] if variant is None else [variant]
      config = namespace['get_config'](*arguments)
    except errors.UserError:
      raise
    # The file is a program of the user's; it can raise anything.
    except Exception as e:
      lines = [
        frame.lineno
        for frame in traceback.extract_tb(e.__traceback__)
        if frame.filename == path
      ]
      if isinstance(e, SyntaxError) and e.filename == path:
        lines.append(e.lineno)
      place = f'{path}:{lines[-1]}' if lines else path
      raise errors.UserError(
        f'--config {place}: {type(e).__name__}: {e}'
      ) from e
    if not isinstance(config, config_lib.Config):
      raise errors.UserError(
        f'--config {path}: get_config() returned {type(config).__name__}, '
        'expected vtokens.config.Config'
      )
    return config


def _check_names(argv: Sequence[str]) -> None:
  """Refuses `--config.a.b` where there is no such field, with a suggestion.

  ml_collections itself would end in a traceback.
  """
  file_given = False
  for arg in argv[1:]:
    name = arg.lstrip('-').removeprefix('no').split('=')[0]
    file_given |= name == 'config'
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    if not file_given:
      raise errors.UserError(f'--{name}: --config FILE is needed before it')
    section: type | None = config_lib.Config
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
