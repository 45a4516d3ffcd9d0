"""Tests of vtokens.settings.schema, on settings made up for them."""

import copy
import dataclasses
import json

import pytest

from vtokens import config
from vtokens.data.build import build_config
from vtokens.evaluation import eval_config, tasks
from vtokens.exports import export_config
from vtokens.host import errors
from vtokens.retrieval import retrieval_config
from vtokens.settings import schema


@dataclasses.dataclass
class Leaf:
  size: int = 1
  share: float = 0.5
  range: tuple[int, int] = (1, 2)


@dataclasses.dataclass
class Branch:
  leaf: Leaf = dataclasses.field(default_factory=Leaf)
  leaves: dict[str, Leaf] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Settings:
  name: str = ''
  on: bool = False
  files: tuple[str, ...] = ()
  pairs: tuple[tuple[int, int], ...] = ()
  numbers: dict[str, float] = dataclasses.field(default_factory=dict)
  branch: Branch = dataclasses.field(default_factory=Branch)
  branches: dict[str, Branch] = dataclasses.field(default_factory=dict)


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


def test_flatten_names_every_field():
  flat = schema.flatten(_full())
  expected = {
    'name': 'n',
    'on': True,
    'files': ('a', 'b'),
    'pairs': ((1, 2), (3, 4)),
    'numbers': {'x': 0.5, 'y.z': 2},
    'branch.leaf.size': 3,
    'branch.leaf.share': 0.25,
    'branch.leaf.range': (4, 5),
    'branch.leaves[l].size': 3,
    'branches[b].leaf.size': 1,
    'branches[b].leaves[c].share': 0.25,
    'branches[b].leaves[d].range': (1, 2),
    'branches[e f].leaf.share': 0.5,
  }
  assert {field: flat[field] for field in expected} == expected
  # Dicts of sections are values themselves too; sections are not.
  assert flat['branches'] == _full().branches
  assert flat['branches[b].leaves'] == _full().branches['b'].leaves
  assert not {'branch', 'branch.leaf', 'branches[b]'} & flat.keys()
  # 5 fields, 1 branch of 1 leaf and a dict of 1, a dict of 2 branches with a
  # leaf each and dicts of 2 and none.
  assert len(flat) == 5 + (3 + 1 + 3) + 1 + (3 + 1 + 6) + (3 + 1)


def test_flatten_of_defaults():
  assert schema.flatten(Leaf()) == {'size': 1, 'share': 0.5, 'range': (1, 2)}
  assert schema.flatten(Leaf(), 'a.')['a.size'] == 1


@pytest.mark.parametrize(
  'settings, message',
  [
    (Settings(name=3), 'config.name: expected str, got 3'),
    (Settings(on=1), 'config.on: expected bool, got 1'),
    (
      Settings(files='ab'),
      "config.files: expected tuple[str, ...], got 'ab'",
    ),
    (
      Settings(pairs=((1, 2), (3,))),
      'config.pairs: expected tuple[tuple[int, int], ...], got ((1, 2), (3,))',
    ),
    (
      Settings(pairs=[(1, 2)]),
      'config.pairs: expected tuple[tuple[int, int], ...], got [(1, 2)]',
    ),
    (
      Settings(numbers={'x': '1'}),
      "config.numbers: expected dict[str, float], got {'x': '1'}",
    ),
    (
      Settings(numbers={'x': True}),
      "config.numbers: expected dict[str, float], got {'x': True}",
    ),
    (
      Settings(numbers={1: 1.0}),
      'config.numbers: expected dict[str, float], got {1: 1.0}',
    ),
    (
      Settings(numbers={'': 1.0}),
      "config.numbers: expected dict[str, float], got {'': 1.0}",
    ),
    (
      Settings(numbers=['x']),
      "config.numbers: expected dict[str, float], got ['x']",
    ),
    (Settings(branch={}), 'config.branch: expected a Branch, got {}'),
    (
      Settings(branch=Branch),
      f'config.branch: expected a Branch, got {Branch!r}',
    ),
    (
      Settings(branch=Branch(leaf=Leaf(size=1.0))),
      'config.branch.leaf.size: expected int, got 1.0',
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
      'config.branches[b].leaves[c].range: expected tuple[int, int], got '
      "(1, '2')",
    ),
  ],
)
def test_flatten_refuses(settings, message):
  with pytest.raises(errors.UserError) as e:
    schema.flatten(settings)
  assert str(e.value) == message


def test_there_and_back():
  settings = _full()
  text = json.dumps(schema.to_dict(settings))
  again = schema.build(Settings, json.loads(text))
  assert again == settings
  # Down to the types that JSON does not have.
  assert isinstance(again.branches['b'].leaves['c'], Leaf)
  assert again.pairs == ((1, 2), (3, 4))
  assert schema.flatten(again) == schema.flatten(settings)


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
def test_build_leaves_the_type_of_a_dict_to_flatten(value):
  built = schema.build(Settings, {'branches': value})
  with pytest.raises(
    errors.UserError, match=r'^config\.branches: expected a d'
  ):
    schema.flatten(built)


def test_diff():
  old = schema.to_dict(_full())
  assert schema.diff(old, copy.deepcopy(old)) == []
  new = copy.deepcopy(old)
  new['name'] = 'm'
  new['files'] = ['a']
  new['numbers']['x'] = 0.75
  del new['branch']['leaf']['share']
  new['branches']['b']['leaves']['c']['size'] = 8
  del new['branches']['e f']
  assert schema.diff(old, new) == [
    "config.branch.leaf.share: 0.25 there, '(absent)' now",
    'config.branches.b.leaves.c.size: 3 there, 8 now',
    "config.branches.e f.leaf.range: [1, 2] there, '(absent)' now",
    "config.branches.e f.leaf.share: 0.5 there, '(absent)' now",
    "config.branches.e f.leaf.size: 1 there, '(absent)' now",
    "config.files: ['a', 'b'] there, ['a'] now",
    "config.name: 'n' there, 'm' now",
    'config.numbers.x: 0.5 there, 0.75 now',
  ]
  assert schema.diff({'a': 1}, {'a': 2}, 'base.') == ['base.a: 1 there, 2 now']


def test_diff_tells_false_from_absent():
  assert schema.diff({'a': None}, {}) == [
    "config.a: None there, '(absent)' now"
  ]
  assert schema.diff({}, {'a': {'b': 0}}) == [
    "config.a.b: '(absent)' there, 0 now"
  ]


def test_diff_from_what_had_fewer_fields():
  defaults = {'a': 1, 'b': {'c': 2, 'd': 3}}
  old = {'b': {'c': 4}}
  assert schema.diff(old, {'a': 1, 'b': {'c': 4, 'd': 3}}, '', defaults) == []
  assert schema.diff(old, {'a': 5, 'b': {'c': 2, 'd': 3}}, '', defaults) == [
    'a: 1 there, 5 now',
    'b.c: 4 there, 2 now',
  ]


def test_as_section():
  assert schema.as_section(Leaf) is Leaf
  for kind in (int, dict[str, Leaf], tuple[int, ...], Leaf(), None):
    assert schema.as_section(kind) is None


@dataclasses.dataclass
class Place:
  path: str = schema.path('~')
  paths: tuple[str, ...] = schema.path(())


@dataclasses.dataclass
class Places:
  one: Place = dataclasses.field(default_factory=Place)
  more: dict[str, Place] = dataclasses.field(default_factory=dict)
  text: str = '~'


def test_home_in_paths(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  settings = Places(more={'a': Place(paths=('~/x', 'y', 'records:~/z:t'))})
  values, _ = schema.check(settings, {})
  assert values['one.path'] == settings.one.path == '/home/me'
  assert settings.more['a'].paths == ('/home/me/x', 'y', 'records:/home/me/z:t')
  assert settings.text == '~'
  # Whatever is recorded has one name for one place.
  again = Places(more={'a': Place(paths=('/home/me/x', 'y', '~/z'))})
  again.more['a'].paths = ('/home/me/x', 'y', 'records:/home/me/z:t')
  schema.check(again, {})
  assert schema.to_dict(again) == schema.to_dict(settings)


def test_home_of_nobody():
  settings = Places(more={'a': Place(paths=('~no_such_user/x',))})
  with pytest.raises(
    errors.UserError, match=r'^config\.more\[a\]\.paths: ~no_'
  ):
    schema.check(settings, {})


# Fields of text that name no file. Any other is made by `schema.path`.
_NO_PATHS = {
  'attention', 'beam_options', 'conditions', 'coordinator', 'dataset',
  'device', 'draw', 'drop_answers', 'dtype', 'format', 'init', 'init_text',
  'kind', 'name', 'names', 'normalize', 'on_bad_record', 'on_stale_index',
  'order', 'passage_prefix', 'pooling', 'position', 'quantize',
  'query_prefix', 'reference', 'retriever', 'retrievers', 'revision',
  'runner', 'schedule', 'stemmer', 'stopwords', 'storage', 'token_pattern',
  'turns', 'wandb_project', 'weighting',
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
    for field in dataclasses.fields(part):
      if field.type in (str, tuple[str, ...], 'str', 'tuple[str, ...]'):
        is_path = 'path' in field.metadata
        assert is_path != (field.name in _NO_PATHS), (part, field.name)
