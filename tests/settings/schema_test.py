"""Tests of vtokens.settings.schema, on settings made up for them."""

import copy
import dataclasses
import json
import pickle
import typing
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le

from vtokens import config
from vtokens.data.build import build_config
from vtokens.evaluation import eval_config, tasks
from vtokens.exports import export_config
from vtokens.host import errors
from vtokens.retrieval import retrieval_config
from vtokens.settings import field_types, schema


@dataclasses.dataclass
class Leaf(schema.Section):
  size: int = 1
  share: float = 0.5
  range: tuple[int, int] = (1, 2)


@dataclasses.dataclass
class Branch(schema.Section):
  leaf: Leaf = dataclasses.field(default_factory=Leaf)
  leaves: dict[str, Leaf] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Settings(schema.Section):
  name: str = ''
  on: bool = False
  files: tuple[str, ...] = ()
  pairs: tuple[tuple[int, int], ...] = ()
  numbers: dict[field_types.Name, float] = dataclasses.field(
    default_factory=dict
  )
  branch: Branch = dataclasses.field(default_factory=Branch)
  branches: dict[field_types.Name, Branch] = dataclasses.field(
    default_factory=dict
  )


def _full() -> Settings:
  """A value other than the default in every field, sections in sections."""
  leaf = Leaf(size=3, share=0.25, range=(4, 5))
  return Settings(
    name='n',
    on=True,
    files=('a', 'b'),
    pairs=((1, 2), (3, 4)),
    numbers={'x': 0.5, 'y.z': 2},
    branch=Branch(leaf=leaf, leaves={'l': leaf}),
    branches={'b': Branch(leaves={'c': leaf, 'd': Leaf()}), 'e f': Branch()},
  )


@pytest.mark.parametrize(
  'settings, message',
  [
    (Settings(name=3), 'config.name: expected a string, got 3'),
    (Settings(on=1), 'config.on: expected True or False, got 1'),
    (
      Settings(files='ab'),
      "config.files: expected a tuple of strings, got 'ab'",
    ),
    (
      Settings(pairs=((1, 2), (3,))),
      'config.pairs: expected a tuple of tuples of 2 integers, got '
      '((1, 2), (3,))',
    ),
    (
      Settings(pairs=[(1, 2)]),
      'config.pairs: expected a tuple of tuples of 2 integers, got [(1, 2)]',
    ),
    (
      Settings(numbers={'x': '1'}),
      "config.numbers: expected a dict from names to numbers, got {'x': '1'}",
    ),
    (
      Settings(numbers={'x': True}),
      "config.numbers: expected a dict from names to numbers, got {'x': True}",
    ),
    (
      Settings(numbers={1: 1.0}),
      'config.numbers: expected a dict from names to numbers, got {1: 1.0}',
    ),
    (
      Settings(numbers={'': 1.0}),
      "config.numbers: expected a dict from names to numbers, got {'': 1.0}",
    ),
    (
      Settings(numbers=['x']),
      "config.numbers: expected a dict from names to numbers, got ['x']",
    ),
    (Settings(branch={}), 'config.branch: expected a Branch, got {}'),
    (
      Settings(branch=Branch),
      f'config.branch: expected a Branch, got {Branch!r}',
    ),
    (
      Settings(branch=Branch(leaf=Leaf(size=1.0))),
      'config.branch.leaf.size: expected an integer, got 1.0',
    ),
    (
      Settings(branches=[Branch()]),
      'config.branches: expected a dict from names to Branch, got '
      f'{[Branch()]!r}',
    ),
    (
      Settings(branches={'': Branch()}),
      'config.branches: expected a dict from names to Branch, got '
      f'{ {"": Branch()}!r}',
    ),
    (
      Settings(branches={'b': Leaf()}),
      f'config.branches[b]: expected a Branch, got {Leaf()!r}',
    ),
    (
      Settings(branches={'b': Branch(leaves={'c': Leaf(range=(1, '2'))})}),
      'config.branches[b].leaves[c].range: expected a tuple of 2 integers, got '
      "(1, '2')",
    ),
  ],
)
def test_check_refuses(settings, message):
  with pytest.raises(errors.UserError) as e:
    schema.check(settings)
  assert str(e.value) == message


def test_there_and_back():
  settings = _full()
  text = json.dumps(schema.to_dict(settings))
  again = schema.build(Settings, json.loads(text))
  assert again == settings
  # Down to the types that JSON does not have.
  assert isinstance(again.branches['b'].leaves['c'], Leaf)
  assert again.pairs == ((1, 2), (3, 4))
  schema.check(again)
  assert again == settings


def test_to_dict_shares_nothing_with_the_settings():
  settings = _full()
  values = schema.to_dict(settings)
  values['numbers']['x'] = 9.0
  values['branches'].clear()
  assert settings == _full()
  assert values['pairs'] == [[1, 2], [3, 4]]


def test_build_takes_defaults_for_what_is_missing():
  assert schema.build(Settings, {}) == Settings()
  built = schema.build(Settings, {'branches': {'b': {'leaf': {'size': 7}}}})
  assert built == Settings(branches={'b': Branch(leaf=Leaf(size=7))})


@pytest.mark.parametrize(
  'values, message',
  [
    ({'nam': 'x'}, 'config.nam: no such field; did you mean name?'),
    ({'zzz': 'x'}, 'config.zzz: no such field'),
    ({'branch': 3}, 'config.branch: expected a section, got 3'),
    ({'branch': [1]}, 'config.branch: expected a section, got [1]'),
    (
      {'branch': {'leaf': {'sise': 3}}},
      'config.branch.leaf.sise: no such field; did you mean size?',
    ),
    (
      {'branches': {'b': 3}},
      'config.branches[b]: expected a section, got 3',
    ),
    (
      {'branches': {'b': {'leaves': {'c': {'shar': 1}}}}},
      'config.branches[b].leaves[c].shar: no such field; did you mean share?',
    ),
  ],
)
def test_build_refuses(values, message):
  with pytest.raises(errors.UserError) as e:
    schema.build(Settings, values)
  assert str(e.value) == message


@pytest.mark.parametrize('value', [3, [{'leaf': {}}], 'b', None])
def test_build_leaves_the_type_of_a_dict_to_check(value):
  built = schema.build(Settings, {'branches': value})
  with pytest.raises(
    errors.UserError, match=r'^config\.branches: expected a d'
  ):
    schema.check(built)


def test_as_section():
  assert schema.as_section(Leaf) is Leaf
  for kind in (int, dict[str, Leaf], tuple[int, ...], Leaf(), None):
    assert schema.as_section(kind) is None


@dataclasses.dataclass
class Place(schema.Section):
  path: field_types.Path = '~'
  paths: tuple[field_types.Path, ...] = ()


@dataclasses.dataclass
class Places(schema.Section):
  one: Place = dataclasses.field(default_factory=Place)
  more: dict[str, Place] = dataclasses.field(default_factory=dict)
  text: str = '~'


def test_home_in_paths(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  settings = Places(more={'a': Place(paths=('~/x', 'y', 'records:~/z:t'))})
  schema.check(settings)
  assert settings.one.path == '/home/me'
  assert settings.more['a'].paths == ('/home/me/x', 'y', 'records:/home/me/z:t')
  assert settings.text == '~'
  # Whatever is recorded has one name for one place.
  again = Places(more={'a': Place(paths=('/home/me/x', 'y', '~/z'))})
  again.more['a'].paths = ('/home/me/x', 'y', 'records:/home/me/z:t')
  schema.check(again)
  assert schema.to_dict(again) == schema.to_dict(settings)


def test_home_of_nobody():
  settings = Places(more={'a': Place(paths=('~no_such_user/x',))})
  with pytest.raises(
    errors.UserError, match=r'^config\.more\[a\]\.paths: expected .*~no_'
  ):
    schema.check(settings)


# Fields of text that name no file. Any other is a `field_types.Path`.
_NO_PATHS = {
  'attention', 'beam_options', 'conditions', 'coordinator', 'dataset',
  'device', 'draw', 'drop_answers', 'dtype', 'format', 'init', 'init_text',
  'kind', 'name', 'names', 'normalize', 'on_bad_record', 'on_stale_index',
  'order', 'passage_prefix', 'pooling', 'position', 'quantize',
  'query_prefix', 'reference', 'retriever', 'retrievers', 'revision',
  'runner', 'schedule', 'stemmer', 'stopwords', 'storage', 'token_pattern',
  'turns', 'wandb_project', 'weighting',
  'text',
}  # fmt: skip


def _classes(kind):
  yield kind
  for field in dataclasses.fields(kind):
    default = (
      field.default_factory()
      if field.default_factory is not dataclasses.MISSING
      else field.default
    )
    if dataclasses.is_dataclass(default):
      yield from _classes(type(default))


@pytest.mark.parametrize(
  'kind',
  [
    config.Config,
    eval_config.Config,
    tasks.Task,
    retrieval_config.Config,
    retrieval_config.Retriever,
    build_config.Config,
    build_config.Split,
    export_config.Config,
  ],
  ids=lambda kind: f'{kind.__module__}.{kind.__name__}',
)
def test_every_field_of_a_path_is_one(kind):
  for part in _classes(kind):
    if part is config.Templates:
      continue
    for name, kind in schema.types_of(part).items():
      if schema.bare(kind) is tuple:
        kind = typing.get_args(kind)[0]
      if schema.bare(kind) is str and typing.get_origin(kind) is not Literal:
        is_path = 'expand_home' in repr(kind)
        assert is_path != (name in _NO_PATHS), (part, name)


@dataclasses.dataclass
class Bounded(schema.Section):
  word: Literal['a', 'b', ''] = 'a'
  size: Annotated[int, Ge(1), Le(1000)] = 1
  share: Annotated[float, Gt(0)] = 0.5
  count: field_types.PositiveInt = 1
  sizes: tuple[Annotated[int, Gt(0)], ...] = ()


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('word', 'c', "one of a, b, ''"),
    ('size', 1001, 'an integer from 1 to 1,000'),
    ('size', '1', 'an integer from 1 to 1,000'),
    ('share', 0.0, 'a number > 0'),
    ('share', float('nan'), 'a finite number'),
    # The bound that every field has is said only of a number beyond it.
    ('count', 0, 'an integer >= 1'),
    ('count', 2**31, 'an integer from 1 to 2,147,483,647'),
    # All of a tuple is shown.
    ('sizes', (1, 0), 'a tuple of integers > 0'),
  ],
)
def test_bounds_and_choices(field, value, expected):
  settings = Bounded()
  schema.check(settings)
  setattr(settings, field, value)
  with pytest.raises(schema.FieldError) as e:
    schema.check(settings)
  assert e.value.field == f'config.{field}'
  assert str(e.value) == f'config.{field}: expected {expected}, got {value!r}'


def test_a_field_that_does_not_exist_is_not_ignored():
  settings = _full()
  settings.branches['b'].leaf.sise = 3
  with pytest.raises(schema.FieldError) as e:
    schema.check(settings)
  assert str(e.value) == (
    'config.branches[b].leaf.sise: no such field; did you mean size?'
  )


def test_check_changes_no_value_but_paths():
  settings = Settings(numbers={'x': 2}, branch=Branch(Leaf(share=1)))
  before = repr(settings)
  schema.check(settings)
  # 2 is a number; it stays an int, so that JSON of it is the same.
  assert repr(settings) == before


def test_sections_are_plain_dataclasses():
  settings = _full()
  schema.check(settings)
  assert pickle.loads(pickle.dumps(settings)) == settings
  assert copy.deepcopy(settings) == settings
  again = dataclasses.replace(settings, name='m')
  assert again != settings and again.branch is settings.branch
  assert Settings().branch is not Settings().branch
  assert Settings().numbers is not Settings().numbers
