"""The `--config` flag, and errors that reach the user as one message."""

import difflib
import errno
import os
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from vtokens import commands
from vtokens.host import aside, errors, paths, stopping, streams, writers
from vtokens.settings import config_file, field_types, schema

# Longest error message, in characters. Messages of libraries have no bounds.
_LONGEST = 6000

# By the bare type of a field.
_PARSERS: dict[Any, flags.ArgumentParser[Any]] = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
  tuple: tuple_parser.TupleParser(),
}
_BOOLEANS = flags.BooleanParser()

# `--help` lists a flag under the program that calls `run_config`.
flags.disclaim_key_flags()


def define_path(
  name: str, default: str | None, help: str
) -> flags.FlagHolder[Any]:
  """Defines a flag whose value is a path; see `paths.expand_home`."""
  return flags.DEFINE(
    _PathParser(), name, default, help, serializer=flags.ArgumentSerializer()
  )


def parse_value(field: str, kind: Any, text: str) -> Any:
  """Reads a field's value as its flag does; bounds are not checked.

  Args:
    field: for messages, with dots.
    kind: the field's type.
    text: as on the command line.

  Raises:
    errors.UserError: the text is no value of the type.
  """
  parser = _PARSERS.get(schema.bare(kind), _BOOLEANS)
  try:
    return parser.parse(text)
  except (TypeError, ValueError):
    schema.refuse_value(field, text, field_types.describe(kind))


def run_config(
  main: Callable[[Any], None],
  settings: type,
  validate: Callable[[Any], None],
  example: str | None,
) -> None:
  """Runs a program that takes `--config FILE[:VARIANT]` and overrides of it.

  The flag is defined by this call, so importing a module defines none.

  Args:
    main: called with the validated config.
    settings: the dataclass that the file's get_config() returns.
    validate: raises a `UserError` if the config is not valid.
    example: a config file of this program, for messages; None if the program
      takes no file but only fields, `--config.field=value`.
  """
  if example is None:
    _run_fields(main, settings, validate)
    return
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    f'Python file with get_config() -> {config_file.name(settings)}, e.g. '
    f'{example}. '
    'FILE:VARIANT calls get_config(VARIANT). Its fields are overridden by '
    '--config.section.field=value.',
  )
  _register_types(settings)
  flags.FLAGS['config'].parser = _FileParser(settings)

  def with_config(argv: Sequence[str]) -> None:
    del argv
    config = holder.value
    if config is None:
      raise errors.UserError(f'--config FILE is needed, e.g. {example}')
    file = config_flags.get_config_filename(flags.FLAGS['config'])
    _validate(config, validate, f'in {file}')
    main(config)

  run(with_config, settings)


def _run_fields(
  main: Callable[[Any], None],
  settings: type,
  validate: Callable[[Any], None],
) -> None:
  _start()
  try:
    # Before the definition, which ends in a traceback for an unknown field.
    _check_names(sys.argv, settings, needs_file=False)
  except errors.UserError as e:
    _fail(e)
  _register_types(settings)
  holder = config_flags.DEFINE_config_dataclass(
    'config', settings(), 'Fields: --config.field=value.'
  )

  def with_config(argv: Sequence[str]) -> None:
    del argv
    validate(holder.value)
    main(holder.value)

  run(with_config)


def run(
  main: Callable[[Sequence[str]], None],
  settings: type | None = None,
  *,
  arguments: int = 0,
) -> None:
  """Runs a command line program.

  A `UserError` is printed, and the program exits with 1. A run that a signal
  stopped says how to continue it and exits with 128 plus the signal's number,
  so that its caller does not take it for finished.

  Args:
    main: called with the rest of the command line, as `absl.app` does.
    settings: the dataclass behind `--config FILE`, if there is one.
    arguments: most arguments besides flags.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    if {'-h', '-help', '--help', '--helpshort'} & set(argv[1:]):
      # absl's own exits with 1.
      app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
      if settings is not None:
        _check_names(argv, settings, needs_file=True)
      return flags.FLAGS(list(argv))
    except (flags.Error, errors.UserError) as e:
      _fail(e)
    # ml_collections raises these out of the parsing of a nested field.
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      _fail(f'{type(e).__name__}: {e}')

  def guarded(argv: Sequence[str]) -> None:
    unexpected = argv[1 + arguments :]
    if unexpected:
      _fail(f'unexpected arguments: {errors.several(unexpected)}')
    try:
      with stopping.at_once():
        main(argv)
    except errors.NotWrittenError as e:
      _fail(f'{e}. Once it can, run again: {command_line()}')
    except errors.UserError as e:
      _fail(e)
    except stopping.Stopped as e:
      writers.close_bars()
      writers.say(f'{e}; continue with: {command_line()}')
      sys.exit(e.exit_code)
    # A full disk, or a failure of an object store: the network, a permission,
    # an expired login.
    except Exception as e:
      if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f'{e.filename or "a file"} cannot be written: {e.strerror}'
      elif isinstance(e, OSError) and e.filename and e.strerror:
        # An error that the code that opened, read or wrote did not expect.
        _fail(f'{e.filename}: {e.strerror}')
      elif paths.is_of_a_store(e):
        problem = f'an object store cannot be used: {type(e).__name__}: {e}'
      else:
        raise
      _fail(f'{problem}. Once it can, run again: {command_line()}')

  # Orbax logs every step at INFO.
  logging.set_verbosity(logging.WARNING)
  _start()
  try:
    app.run(guarded, flags_parser=parse)
  except SystemExit as e:
    aside.end(e.code if _finish() or e.code else 128 + signal.SIGPIPE)


def _start() -> None:
  """Prepares streams and signals, before anything can fail or print."""
  streams.guard()
  stopping.end_now_outside()
  logging.get_absl_handler().python_handler.setStream(sys.stderr)
  for number, argument in enumerate(sys.argv):
    try:
      argument.encode()
    except UnicodeEncodeError:
      _fail(
        f'argument {number}: {errors.shorten(repr(os.fsencode(argument)))} is '
        'not valid UTF-8; names of files and texts have to be'
      )


def _finish() -> bool:
  """Whether all output could be written."""
  try:
    return streams.finish()
  except OSError as e:
    _fail(f'{e.filename} cannot be written: {e.strerror}')


def command_line() -> str:
  """The command that started this program, to be typed again."""
  program = list(commands.called())
  if not program:
    spec = sys.modules['__main__'].__spec__
    program = ['python', sys.argv[0]]
    if spec is not None:
      program = ['python', '-m', spec.name.removesuffix('.__main__')]
  return shlex.join([*program, *sys.argv[1:]])


class _PathParser(flags.ArgumentParser[str]):
  """Expands a leading `~`."""

  def parse(self, argument: str) -> str:
    return paths.expand_home(argument)

  def flag_type(self) -> str:
    return 'string'


class _FileParser(flags.ArgumentParser[Any]):
  """Runs a config file; ml_collections' own shows mistakes as tracebacks."""

  def __init__(self, settings: type):
    self._settings = settings

  def parse(self, argument: str) -> Any:
    return config_file.load(argument, self._settings)


def _register_types(section: type) -> None:
  """Tells config_flags how to parse the types of a section's fields.

  It looks them up by the whole type of a field, bounds included.
  """
  for kind in schema.types_of(section).values():
    if (inner := schema.as_section(kind)) is not None:
      _register_types(inner)
    elif (bare := schema.bare(kind)) in _PARSERS:
      config_flags.register_flag_parser_for_type(kind, _PARSERS[bare])


def _validate(config: Any, validate: Callable[[Any], None], place: str) -> None:
  """Adds to errors of fields where a field's value comes from.

  Args:
    config: the settings.
    validate: raises `schema.FieldError` for a wrong field.
    place: for fields that the command line does not set.
  """
  try:
    validate(config)
  except schema.FieldError as e:
    if any(arg.lstrip('-').startswith(f'{e.field}=') for arg in sys.argv[1:]):
      raise
    raise errors.UserError(f'{e} ({place})') from None


def _check_names(
  argv: Sequence[str], settings: type, *, needs_file: bool
) -> None:
  """Refuses `--config.a.b` where there is no such field, with a suggestion.

  ml_collections itself would end in a traceback.
  """
  file_given = False
  for arg in argv[1:]:
    name = arg.lstrip('-').removeprefix('no').split('=')[0]
    file_given |= name == 'config'
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    if needs_file and not file_given:
      raise errors.UserError(f'--{name}: --config FILE is needed before it')
    section: type | None = settings
    path = 'config'
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
      section = schema.as_section(kind)
      path += f'.{part}'
      if typing.get_origin(kind) is dict:
        raise errors.UserError(
          f'--{name}: {path} is a dict, which only the config file can set'
        )
    if section is not None:
      raise errors.UserError(
        f'--{name}: a section, not a field; set one of '
        f'{", ".join(f"--{name}.{f}" for f in typing.get_type_hints(section))}'
      )


def _fail(message: object) -> typing.NoReturn:
  print(f'error: {_bounded(str(message))}', file=sys.stderr)
  sys.exit(1)


def _bounded(text: str) -> str:
  """Text of a bounded length that cannot command a terminal."""
  if len(text) > _LONGEST:
    text = (
      f'{text[: _LONGEST // 2]}\n... ({len(text):,} characters) ...\n'
      f'{text[-_LONGEST // 4 :]}'
    )
  return ''.join(
    c if c.isprintable() or c in '\n\t' else repr(c)[1:-1] for c in text
  )
