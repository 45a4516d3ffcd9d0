"""Tests of vtokens.config."""

import copy
import dataclasses
import json
import math
import pathlib
import runpy
import typing

import pytest

from vtokens import config, errors, schema

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def _valid() -> config.Config:
  return config.Config(
    workdir='w',
    base=config.Base(path='b'),
    data=config.Data(train=('t.jsonl',)),
  )


def _set(cfg, field, value):
  *sections, name = field.split('.')
  for section in sections:
    cfg = getattr(cfg, section)
  setattr(cfg, name, value)


def _fields(cls=config.Config, prefix=''):
  """Every field of the config as (path, type)."""
  for name, kind in typing.get_type_hints(cls).items():
    if dataclasses.is_dataclass(kind):
      yield from _fields(kind, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', kind


def _load(path: pathlib.Path) -> config.Config:
  return runpy.run_path(str(path))['get_config']()


def test_defaults_are_valid():
  config.validate(_valid())


@pytest.mark.parametrize(
  'path', sorted(_CONFIGS.glob('*.py')), ids=lambda path: path.name
)
def test_every_config_file_is_valid(path):
  config.validate(_load(path))


# One wrong value for each type that a field can have; `True` is an int to
# Python, and a lone string is a sequence of strings.
_WRONG = {
  str: 3,
  bool: 1,
  int: True,
  float: '0.1',
  tuple[str, ...]: 'a.jsonl',
  tuple[int, ...]: [1, 5],
  tuple[int, int]: (1, 2, 3),
  tuple[int, int, int]: (1, 1.0, 1),
  tuple[tuple[int, int], ...]: ((64, 64), [64, 64]),
}


@pytest.mark.parametrize(
  'field, kind', list(_fields()), ids=[field for field, _ in _fields()]
)
def test_type_of_every_field(field, kind):
  cfg = _valid()
  _set(cfg, field, _WRONG[kind])
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value).startswith(f'config.{field}: expected ')
  assert repr(_WRONG[kind]) in str(e.value)


@pytest.mark.parametrize(
  'field, value',
  [
    ('seed', 1.0),
    ('optim.learning_rate', True),
    ('eval.num_active', (1, True)),
    ('eval.num_active', (1, '5')),
    ('data.train', (b't.jsonl',)),
    ('data.num_passages', (1,)),
    ('data.buckets', (512, 160)),
    ('data.buckets', ((512, 160, 1),)),
    ('mesh.shape', (-1, 1)),
    ('optim', {'learning_rate': 1.0}),
    ('base', 'b'),
  ],
)
def test_more_wrong_types(field, value):
  cfg = _valid()
  _set(cfg, field, value)
  with pytest.raises(errors.UserError, match=f'^config.{field}: expected'):
    config.validate(cfg)


def test_an_int_is_a_float():
  cfg = _valid()
  cfg.optim.learning_rate = 1
  config.validate(cfg)


# (field that the message names, its bad value, other fields set before it).
_BAD = [
  # One of a few words.
  ('base.dtype', 'float16', {}),
  ('virtual_tokens.init', 'zeros', {}),
  ('virtual_tokens.draw', 'Uniform', {}),
  ('data.on_bad_record', 'ignore', {}),
  ('optim.schedule', '', {}),
  ('eval.conditions', ('closed_book', 'tokens'), {}),
  # Positive.
  ('virtual_tokens.num_virtual_tokens', 0, {}),
  ('virtual_tokens.num_active', 0, {}),
  ('data.batch_size', -8, {}),
  ('data.max_answer_tokens', 0, {}),
  ('data.window_batches', 0, {}),
  ('optim.learning_rate', 0.0, {}),
  ('optim.eps', 0.0, {}),
  ('train.num_steps', 0, {}),
  ('train.accumulation_steps', 0, {}),
  ('train.log_every', 0, {}),
  ('train.validate_every', 0, {}),
  ('train.checkpoint_every', 0, {}),
  ('train.keep_checkpoints', 0, {}),
  ('eval.batch_size', 0, {}),
  ('eval.max_new_tokens', 0, {}),
  # Not negative.
  ('seed', -1, {}),
  ('virtual_tokens.init_std', -0.1, {}),
  ('optim.warmup_steps', -1, {}),
  ('optim.clip_norm', -1.0, {}),
  ('eval.num_passages', -1, {}),
  ('eval.max_validation', -1, {}),
  ('eval.max_test', -1, {}),
  # Finite: NaN passes any comparison.
  ('optim.learning_rate', math.nan, {}),
  ('optim.clip_norm', math.inf, {}),
  ('virtual_tokens.init_std', math.nan, {}),
  # Needed.
  ('workdir', '', {}),
  ('base.path', '', {}),
  ('data.train', (), {}),
  # Templates.
  ('templates.passage', '[{index}]\n', {}),
  ('templates.passage', '{number} {text}', {}),
  ('templates.passage', '{} {text}', {}),
  ('templates.prompt', 'Question:', {}),
  ('templates.prompt', '{question', {}),
  ('templates.prompt', '{{question}}', {}),
  ('templates.prompt', '{question} {answer}', {}),
  ('templates.prompt', '{question!r}', {}),
  ('templates.prompt', '{question.__class__} {question}', {}),
  ('templates.concat', '', {}),
  ('templates.instruction', 'Answer.', {}),
  ('templates.answer', '{question}', {}),
  # Fields that have to fit one another.
  ('virtual_tokens.num_active', 51, {'virtual_tokens.draw': 'fixed'}),
  (
    'eval.num_active',
    (1, 50),
    {'virtual_tokens.draw': 'fixed', 'virtual_tokens.num_active': 10},
  ),
  ('eval.num_active', (), {}),
  ('eval.num_active', (0, 5), {}),
  ('eval.num_active', (1, 51), {}),
  ('eval.num_active', (50,), {'virtual_tokens.num_virtual_tokens': 20}),
  ('virtual_tokens.init_path', '', {'virtual_tokens.init': 'table'}),
  ('virtual_tokens.init_text', ' \n', {}),
  ('data.num_passages', (3, 2), {}),
  ('data.num_passages', (-1, 2), {}),
  ('train.accumulation_steps', 3, {'data.batch_size': 32}),
  ('data.buckets', (), {}),
  ('data.buckets', ((0, 160),), {}),
  ('data.buckets', ((512, 160), (256, 160)), {}),
  ('data.buckets', ((512, 200), (1024, 160)), {}),
  ('data.buckets', ((512, 113),), {}),
  ('mesh.shape', (-1, -1, 1), {}),
  ('mesh.shape', (-1, 0, 1), {}),
  ('mesh.shape', (-2, 1, 1), {}),
  ('optim.b1', 1.0, {}),
  ('optim.b2', -0.1, {}),
  ('optim.warmup_steps', 1000, {}),
]


@pytest.mark.parametrize(
  'field, value, others', _BAD, ids=[f'{f}={v!r}' for f, v, _ in _BAD]
)
def test_bad_value(field, value, others):
  cfg = _valid()
  for other, good in others.items():
    _set(cfg, other, good)
  _set(cfg, field, value)
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value).startswith(f'config.{field}: expected ')
  assert str(e.value).endswith(f', got {value!r}')


@pytest.mark.parametrize(
  'field, value',
  [
    ('virtual_tokens.init_text', ''),  # init is not text.
    ('virtual_tokens.num_active', 500),  # draw is not fixed.
    ('data.num_passages', (0, 0)),
    ('data.buckets', ((512, 114),)),  # 50 + 64.
    ('data.validation', ()),
    ('eval.conditions', ()),
    ('eval.num_active', (50, 1)),
    ('eval.num_passages', 0),
    ('mesh.shape', (2, -1, 4)),
    ('optim.b1', 0.0),
    ('optim.clip_norm', 0.0),
    ('optim.warmup_steps', 0),
    ('optim.warmup_steps', 999),
    ('templates.passage', '{{{text}}}'),
    ('templates.prompt', '{question} {question}'),
    ('train.accumulation_steps', 32),
  ],
)
def test_unusual_value(field, value):
  cfg = _valid()
  cfg.virtual_tokens.init = 'vocab'
  _set(cfg, field, value)
  config.validate(cfg)


def test_json_round_trip():
  cfg = _load(_CONFIGS / 'quickstart.py')
  cfg.optim.learning_rate = 1 / 3
  cfg.virtual_tokens.init_text = 'Ä "quoted"\n'
  text = json.dumps(schema.to_dict(cfg))
  assert config.from_dict(json.loads(text)) == cfg


def test_to_dict_holds_json_values_only():
  values = schema.to_dict(_valid())
  assert values['data']['buckets'] == [[512, 160], [1024, 160]]
  assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
  'change, message',
  [
    ({'optimm': {}}, 'config.optimm: no such field; did you mean optim?'),
    (
      {'optim': {'learningrate': 1.0}},
      'config.optim.learningrate: no such field; did you mean learning_rate?',
    ),
    ({'zzz': 1}, 'config.zzz: no such field'),
    ({'optim': 3}, 'config.optim: expected a section, got 3'),
    ({'seed': '1'}, "config.seed: expected int, got '1'"),
    (
      {'train': {'num_steps': 0}},
      'config.train.num_steps: expected a number above 0, got 0',
    ),
  ],
)
def test_from_dict_refuses(change, message):
  values = schema.to_dict(_valid())
  values['optim'].pop('warmup_steps')
  with pytest.raises(errors.UserError) as e:
    config.from_dict(values | change)
  assert str(e.value) == message


def test_diff():
  old = schema.to_dict(_valid())
  new = copy.deepcopy(old)
  assert schema.diff(old, new) == []
  new['seed'] = 1
  new['data']['train'] = ['u.jsonl']
  del new['optim']['eps']
  assert schema.diff(old, new) == [
    "config.data.train: ['t.jsonl'] there, ['u.jsonl'] now",
    "config.optim.eps: 1e-08 there, '(absent)' now",
    'config.seed: 0 there, 1 now',
  ]
  assert schema.diff({'a': 1}, {'a': 2}, 'base.') == ['base.a: 1 there, 2 now']
