"""Candidates of a sweep: configs that differ in the fields of `--over`."""

import ast
import copy
import csv
import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import config
from vtokens.host import errors, paths
from vtokens.run import run_identity
from vtokens.settings import flags, schema

# Most candidates of a sweep.
_MOST = 1000
# Sections and fields that decide how candidates are compared, on which
# questions, or how far they train.
_SHARED = (
  'base',
  'eval',
  'data.corpus',
  'data.max_text_bytes',
  'data.test',
  'data.turns',
  'data.unanswerable',
  'data.validation',
  'train.num_steps',
  'train.validate_every',
)

_EXAMPLE = '--over optim.learning_rate=3e-3,1e-2,3e-2'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A run of a sweep.

  Attributes:
    name: its number, from 1.
    values: the fields of `--over` and their values.
    config: of its run, which has a work directory of its own.
  """

  name: str
  values: Mapping[str, Any]
  config: config.Config

  def __str__(self) -> str:
    values = (f'{field}={shown(v)}' for field, v in self.values.items())
    return f'{self.name} ({", ".join(values)})'


def shown(value: Any) -> str:
  """A field's value in a table or a message."""
  return errors.shorten(value, 60)


def parse(over: Sequence[str]) -> dict[str, tuple[Any, ...]]:
  """Reads the flags `--over FIELD=VALUE,VALUE...`.

  A text with a comma is written in double quotes. Values of a field that is a
  tuple are tuples: `data.passages.number=(1,3),(2,5)`.

  Returns:
    Field -> its values.

  Raises:
    errors.UserError: a field is unknown or may not vary, or a value is of
      another type; the message lists all such mistakes.
  """
  found: dict[str, tuple[Any, ...]] = {}
  problems = []
  for text in over:
    try:
      field, values = _parse(text)
      if field in found:
        raise errors.UserError(f'--over: {field} is given twice')
      found[field] = values
    except errors.UserError as e:
      problems.append(str(e))
  _raise(problems)
  if not found:
    raise errors.UserError(f'--over FIELD=VALUES is needed, e.g. {_EXAMPLE}')
  return found


def make(
  cfg: config.Config, over: Mapping[str, Sequence[Any]]
) -> tuple[list[Candidate], int]:
  """Combines all values of all fields.

  Args:
    cfg: the config of the sweep; its work directory is the sweep's.
    over: result of `parse`.

  Returns:
    The candidates, and how many combinations were left out because they are the
    same run as another one.

  Raises:
    errors.UserError: a candidate's config is not valid, which the message says
      for all of them; or there are too many or too few.
  """
  if not cfg.data.validation:
    schema.refuse(cfg, 'data.validation', 'to be set: a sweep compares by it')
  combinations = list(itertools.product(*over.values()))
  if len(combinations) > _MOST:
    raise errors.UserError(
      f'--over: {len(combinations):,} candidates, expected at most {_MOST:,}'
    )
  width = len(str(len(combinations)))
  candidates: list[Candidate] = []
  problems = []
  for combination in combinations:
    values = dict(zip(over, combination, strict=True))
    name = str(len(candidates) + 1).zfill(width)
    one = Candidate(name, values, _config(cfg, values, name))
    try:
      config.validate(one.config)
    except errors.UserError as e:
      listed = ', '.join(f'{f}={shown(v)}' for f, v in values.items())
      problems.append(f'with {listed}: {e}')
      continue
    if not any(_same_run(one, other) for other in candidates):
      candidates.append(one)
  _raise(problems)
  if len(candidates) < 2:
    raise errors.UserError(
      '--over: only one candidate, expected at least two values of some field'
    )
  return candidates, len(combinations) - len(candidates)


def _parse(text: str) -> tuple[str, tuple[Any, ...]]:
  """The field of one flag, and its values."""
  field, is_given, listed = text.partition('=')
  field = field.strip().removeprefix('config.')
  if not is_given:
    raise errors.UserError(
      f'--over: expected FIELD=VALUE,VALUE..., got {errors.shorten(text)!r}, '
      f'e.g. {_EXAMPLE}'
    )
  kind = schema.kind_of(config.Config, field)
  _check_may_vary(field)
  if schema.bare(kind) is tuple:
    values = _tuples(field, listed)
  else:
    try:
      texts = next(csv.reader([listed], skipinitialspace=True, strict=True), [])
    except csv.Error as e:
      raise errors.UserError(
        f'--over: {field}: {e}; write a text with a comma or a line break in '
        'double quotes'
      ) from None
    values = [flags.parse_value(field, kind, one) for one in texts]
  if not values:
    raise errors.UserError(f'--over: {field} has no values, e.g. {_EXAMPLE}')
  for i, value in enumerate(values):
    # Its bounds.
    schema.check(_with(config.Config(), {field: value}))
    if value in values[:i]:
      raise errors.UserError(f'--over: {field}={shown(value)} is given twice')
  return field, tuple(values)


def _tuples(field: str, listed: str) -> list[Any]:
  try:
    values = ast.literal_eval(f'[{listed}]')
  except (ValueError, SyntaxError):
    values = [None]
  if not all(isinstance(value, tuple) for value in values):
    raise errors.UserError(
      f'--over: {field}: expected tuples, as in {field}=(1,2),(3,4), got '
      f'{errors.shorten(listed)}'
    )
  return list(values)


def _check_may_vary(field: str) -> None:
  def is_one_of(names: Sequence[str]) -> bool:
    return any(field == name or field.startswith(f'{name}.') for name in names)

  if is_one_of(_SHARED):
    raise errors.UserError(
      f'--over: {field} cannot vary: all candidates of a sweep share it'
    )
  if is_one_of((*run_identity.NOT_KEPT, *run_identity.FREE)):
    raise errors.UserError(
      f'--over: {field} cannot vary: it changes no number of a training'
    )


def _config(
  cfg: config.Config, values: Mapping[str, Any], name: str
) -> config.Config:
  """The config of a candidate, not checked."""
  made = copy.deepcopy(cfg)
  made.workdir = str(epath.Path(cfg.workdir) / 'candidates' / name)
  if not made.data.token_cache and not paths.on_object_store(cfg.workdir):
    # Tokenised once for all.
    made.data.token_cache = str(epath.Path(cfg.workdir) / 'tokens')
  return _with(made, values)


def _with(cfg: config.Config, values: Mapping[str, Any]) -> config.Config:
  """Sets fields of a config and returns it."""
  for field, value in values.items():
    section, _, attribute = field.rpartition('.')
    owner = operator.attrgetter(section)(cfg) if section else cfg
    setattr(owner, attribute, value)
  return cfg


def _same_run(one: Candidate, other: Candidate) -> bool:
  """Whether two candidates differ only in fields that do not matter."""
  blocking, moved = run_identity.compare(
    run_identity.to_dict(one.config), other.config
  )
  return not blocking and not moved


def _raise(problems: Sequence[str]) -> None:
  if len(problems) == 1:
    raise errors.UserError(problems[0])
  if problems:
    raise errors.UserError(
      f'--over: {len(problems)} mistakes:{errors.lines(problems)}'
    )
