"""Tests of vtokens.config."""

import dataclasses
import json
import math
import pathlib
import runpy
import typing

import pytest

from vtokens import config
from vtokens.host import errors
from vtokens.settings import schema

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
  dict[str, float]: {'nq': '0.5'},
  dict[str, int]: {'nq': 1.0},
  dict[str, config.Passages]: {'': config.Passages()},
}


def _wrong(kind):
  return _WRONG[_plain(kind)]


def _plain(kind):
  """A type with str for a choice of words."""
  if typing.get_origin(kind) is typing.Literal:
    return str
  if typing.get_origin(kind) is tuple:
    return tuple[tuple(map(_plain, typing.get_args(kind)))]
  if typing.get_origin(kind) is dict:
    return dict[tuple(map(_plain, typing.get_args(kind)))]
  return kind


@pytest.mark.parametrize(
  'field, kind', list(_fields()), ids=[field for field, _ in _fields()]
)
def test_type_of_every_field(field, kind):
  cfg = _valid()
  _set(cfg, field, _wrong(kind))
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value).startswith(f'config.{field}: expected ')
  assert repr(_wrong(kind)) in str(e.value)


@pytest.mark.parametrize(
  'field, value',
  [
    ('seed', 1.0),
    ('optim.learning_rate', True),
    ('eval.num_active', (1, True)),
    ('eval.num_active', (1, '5')),
    ('data.train', (b't.jsonl',)),
    ('data.passages.number', (1,)),
    ('data.passages', (1, 5)),
    ('data.shapes', (512, 160)),
    ('data.shapes', ((512, 160, 1),)),
    ('data.mixture.weights', (('nq', 1.0),)),
    ('data.mixture.weights', {1: 1.0}),
    ('data.mixture.weights', {'': 1.0}),
    ('data.mixture.max_examples', {'nq': True}),
    ('data.mixture.passages', config.Passages()),
    ('data.mixture.passages', {'': config.Passages()}),
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


_PASSAGES_FIELDS = dict(_fields(config.Passages))


@pytest.mark.parametrize('field', _PASSAGES_FIELDS)
def test_type_of_every_field_of_a_section_in_a_dict(field):
  wrong = _wrong(_PASSAGES_FIELDS[field])
  cfg = _valid()
  cfg.data.mixture.passages = {
    'nq': config.Passages(),
    'a b': config.Passages(**{field: wrong}),
  }
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value).startswith(
    f'config.data.mixture.passages[a b].{field}: expected '
  )
  assert str(e.value).endswith(f', got {wrong!r}')


@pytest.mark.parametrize('value', ['shuffled', None, {'number': (1, 5)}])
def test_section_in_a_dict_that_is_none(value):
  cfg = _valid()
  cfg.data.mixture.passages = {'nq': value}
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value) == (
    'config.data.mixture.passages[nq]: expected a Passages, got ' + repr(value)
  )


def test_an_int_is_a_float():
  cfg = _valid()
  cfg.optim.learning_rate = 1
  config.validate(cfg)


_BY_WEIGHTS = {'data.mixture.weighting': 'weights'}

# (field that the message names, its bad value, other fields set before it).
_BAD = [
  # One of a few words.
  ('base.dtype', 'float16', {}),
  ('base.quantize', 'int2', {}),
  ('base.quantize', '', {}),
  ('virtual_tokens.init', 'zeros', {}),
  ('virtual_tokens.draw', 'Uniform', {}),
  ('data.on_bad_record', 'ignore', {}),
  ('data.mixture.weighting', 'sizes', {}),
  ('data.passages.order', 'random', {}),
  ('optim.schedule', '', {}),
  ('eval.conditions', ('closed_book', 'tokens'), {}),
  # Positive.
  ('virtual_tokens.num_virtual_tokens', 0, {}),
  ('virtual_tokens.num_active', 0, {}),
  ('data.batch_size', -8, {}),
  ('data.examples_per_row', 0, {}),
  ('data.max_prefix_tokens', 0, {}),
  ('data.max_suffix_tokens', 0, {}),
  ('data.max_answer_tokens', 0, {}),
  ('data.num_shapes', 0, {}),
  ('data.mixture.temperature', 0.0, {}),
  ('data.mixture.weights', {'nq': 1.0, 'web': 0.0}, _BY_WEIGHTS),
  ('data.mixture.max_examples', {'nq': 0}, {}),
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
  ('virtual_tokens.draw_exponent', -0.5, {}),
  ('data.workers', -1, {}),
  ('optim.warmup_steps', -1, {}),
  ('optim.clip_norm', -1.0, {}),
  ('eval.num_passages', -1, {}),
  ('eval.max_validation', -1, {}),
  ('eval.max_test', -1, {}),
  # Finite: NaN passes any comparison.
  ('optim.learning_rate', math.nan, {}),
  ('optim.clip_norm', math.inf, {}),
  ('virtual_tokens.init_std', math.nan, {}),
  ('data.mixture.temperature', math.inf, {}),
  ('data.mixture.weights', {'nq': math.inf}, _BY_WEIGHTS),
  ('data.mixture.weights', {'nq': math.nan}, _BY_WEIGHTS),
  ('data.passages.distractors', math.nan, {}),
  # Needed.
  ('workdir', '', {}),
  ('base.path', '', {}),
  ('data.train', (), {}),
  # Templates.
  ('templates.passage', '[{index}]\n', {}),
  ('templates.passage', '{number} {text}', {}),
  ('templates.passage', '{} {text}', {}),
  ('templates.passage', '{title}\n', {}),
  ('templates.passage', '{text', {}),
  # Its heading is encoded apart from the passage.
  ('templates.passage', '{text} [{index}]\n', {}),
  ('templates.passage', '{title} [{index}] {text}\n', {}),
  ('templates.passage', '[{index}] [{index}] {text}\n', {}),
  ('templates.prompt', 'Question:', {}),
  ('templates.prompt', '{question', {}),
  ('templates.prompt', '{{question}}', {}),
  ('templates.prompt', '{question} {answer}', {}),
  ('templates.prompt', '{question!r}', {}),
  ('templates.prompt', '{question.__class__} {question}', {}),
  ('templates.concat', '', {}),
  ('templates.instruction', 'Answer.', {}),
  ('templates.answer', '{question}', {}),
  ('templates.answer', '{answer} {source}', {}),
  ('templates.answer', '[{source}] {answer}', {}),
  ('templates.answer', '{answer} [{source}] [{source}]', {}),
  ('templates.answer', '{answer} [{source}]', {'templates.passage': '{text}'}),
  ('templates.chat_answer', '{answer}{source}.', {}),
  ('templates.refusal', ' ', {}),
  ('templates.refusal', 'No.\nIdea.', {}),
  ('data.unanswerable', 'keep', {}),
  ('eval.refusal_bias', 1.0, {}),
  ('eval.refusal_bias', math.nan, {'data.unanswerable': 'refuse'}),
  ('templates.chat_answer', '', {}),
  # Fields that have to fit one another.
  ('virtual_tokens.num_active', 51, {'virtual_tokens.draw': 'fixed'}),
  ('virtual_tokens.position', 'last', {'virtual_tokens.kind': 'kv'}),
  ('virtual_tokens.num_frozen', 50, {}),
  ('eval.num_active', (1, 5), {'virtual_tokens.num_frozen': 1}),
  (
    'virtual_tokens.num_active',
    3,
    {
      'virtual_tokens.draw': 'fixed',
      'virtual_tokens.num_frozen': 3,
      'eval.num_active': (3,),
    },
  ),
  (
    'train.distill.tokens',
    'trained',
    {'train.distill.weight': 0.5, 'virtual_tokens.draw': 'fixed'},
  ),
  ('templates.answer', '{answer}\n[{source}]', {}),
  ('templates.answer', '{{x}}{answer}{source}', {}),
  ('virtual_tokens.draws_per_example', 0, {}),
  ('virtual_tokens.draws_per_example', 2, {'virtual_tokens.draw': 'fixed'}),
  ('virtual_tokens.draws_per_example', 2, {'virtual_tokens.position': 'first'}),
  ('virtual_tokens.always_all', True, {}),
  ('train.distill.weight', 1.5, {}),
  (
    'train.distill.passages',
    'gold',
    {'train.distill.weight': 0.5, 'templates.answer': '{answer} [{source}]'},
  ),
  (
    'train.distill.run',
    '',
    {'train.distill.weight': 0.5, 'train.distill.tokens': 'run'},
  ),
  (
    'train.distill.text',
    ' ',
    {'train.distill.weight': 0.5, 'train.distill.tokens': 'text'},
  ),
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
  ('data.passages.number', (3, 2), {}),
  ('data.passages.number', (-1, 2), {}),
  ('data.passages.depth', 4, {}),
  ('data.passages.depth', 2, {'data.passages.number': (1, 3)}),
  ('data.passages.distractors', 1.1, {}),
  ('data.passages.no_answer', -0.1, {}),
  ('data.passages.none', 2, {}),
  ('data.mixture.weights', {}, _BY_WEIGHTS),
  ('data.mixture.weights', {'nq': 1.0}, {}),
  (
    'data.mixture.weights',
    {'nq': 1.0},
    {'data.mixture.weighting': 'temperature'},
  ),
  ('data.batch_size', 32, {'train.accumulation_steps': 3}),
  ('data.batch_size', 32, {'data.examples_per_row': 5}),
  # Of each alone, but not of their product.
  (
    'data.batch_size',
    12,
    {'train.accumulation_steps': 4, 'data.examples_per_row': 6},
  ),
  ('data.shapes', ((0, 160), (1024, 160)), {}),
  ('data.shapes', ((1024, -160), (1024, 160)), {}),
  ('data.shapes', ((1023, 160),), {}),
  ('data.shapes', ((1024, 159),), {}),
  # Any batch has to fit the last one.
  ('data.shapes', ((1024, 160), (512, 160)), {}),
  ('data.shapes', ((2047, 320),), {'data.examples_per_row': 2}),
  ('data.shapes', ((2048, 319),), {'data.examples_per_row': 2}),
  # With the tokens first, the passages are in the suffix.
  ('virtual_tokens.position', 'Middle', {}),
  ('virtual_tokens.position', '', {}),
  ('data.shapes', ((1024, 160),), {'virtual_tokens.position': 'first'}),
  ('data.shapes', ((1, 1183),), {'virtual_tokens.position': 'first'}),
  ('data.shapes', ((1, 1184),), {'virtual_tokens.position': 'last'}),
  (
    'data.shapes',
    ((9, 2367),),
    {'virtual_tokens.position': 'first', 'data.examples_per_row': 2},
  ),
  ('data.max_suffix_tokens', 113, {}),
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
    ('data.passages.number', (0, 0)),
    ('data.passages.number', (5, 5)),
    ('data.passages.none', 1),
    ('data.passages.retrievers', ('gold', 'bm25')),
    ('data.mixture.max_examples', {'nq': 1}),
    ('data.max_suffix_tokens', 114),  # 50 + 64.
    ('data.shapes', ((1024, 160),)),
    ('data.shapes', ((2000, 8), (8, 500), (1024, 160))),
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
    ('templates.passage', '{text}'),
    ('templates.passage', '{index}{title}{text}{title}'),
    ('templates.passage', '{{index}} {{text}} [{index}] {text}'),
    ('templates.prompt', '{question} {question}'),
    ('train.accumulation_steps', 32),
    ('data.examples_per_row', 32),
  ],
)
def test_unusual_value(field, value):
  cfg = _valid()
  cfg.virtual_tokens.init = 'vocab'
  _set(cfg, field, value)
  config.validate(cfg)


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('number', (2, 1), '(least, most) with 0 <= least <= most'),
    ('depth', 4, 'at least the most passages shown, 5'),
    ('order', 'best', 'one of shuffled, rank, gold_last'),
    ('distractors', -0.5, 'a number from 0 to 1'),
    ('no_answer', 1.5, 'a number from 0 to 1'),
    ('none', math.inf, 'a finite number'),
  ],
)
def test_bad_passages_of_one_dataset(field, value, expected):
  cfg = _valid()
  cfg.data.mixture.passages = {
    'nq': config.Passages(),
    'web': config.Passages(**{field: value}),
  }
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value) == (
    f'config.data.mixture.passages[web].{field}: expected {expected}, '
    f'got {value!r}'
  )


def test_mixture_by_weights():
  cfg = _valid()
  cfg.data.mixture = config.Mixture(
    weighting='weights',
    weights={'nq': 1, 'web': 0.25},
    passages={'web': config.Passages(number=(0, 9), depth=9)},
  )
  config.validate(cfg)


def test_rows_of_several_examples():
  cfg = _valid()
  cfg.data.examples_per_row = 4
  cfg.train.accumulation_steps = 8
  cfg.data.shapes = ((100, 640), (4096, 640))
  config.validate(cfg)


def test_rows_with_the_tokens_first():
  cfg = _valid()
  cfg.virtual_tokens.position = 'first'
  cfg.data.examples_per_row = 2
  cfg.data.shapes = ((2, 300), (1, 2368))
  config.validate(cfg)
  cfg.data.shapes = ((2048, 320),)
  with pytest.raises(errors.UserError) as e:
    config.validate(cfg)
  assert str(e.value) == (
    'config.data.shapes: expected the suffix of the last one to be at least '
    '2368: data.examples_per_row times data.max_prefix_tokens and '
    'data.max_suffix_tokens together, since virtual_tokens.position=first '
    'puts the passages there, got ((2048, 320),)'
  )


def test_context_length():
  cfg = _valid()
  cfg.data.max_prefix_tokens = 300
  cfg.data.max_suffix_tokens = 120
  cfg.eval.max_new_tokens = 7
  # However many examples share a row: each has positions of its own.
  cfg.data.examples_per_row = 4
  assert cfg.context_length == 427


def test_json_round_trip():
  cfg = _load(_CONFIGS / 'quickstart.py')
  cfg.data.mixture = config.Mixture(
    weighting='weights',
    weights={'squad': 1 / 3, 'b "c".d': 2.0},
    max_examples={'squad': 7},
    passages={'squad': config.Passages(number=(1, 1), retrievers=('x', 'y'))},
  )
  cfg.data.shapes = ((1408, 304), (1500, 400))
  cfg.optim.learning_rate = 1 / 3
  cfg.virtual_tokens.init_text = 'Ä "quoted"\n'
  text = json.dumps(schema.to_dict(cfg))
  assert config.from_dict(json.loads(text)) == cfg


def test_to_dict_holds_json_values_only():
  values = schema.to_dict(_valid())
  assert values['data']['passages']['number'] == [1, 5]
  assert values['data']['mixture']['weights'] == {}
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
    (
      {'data': {'mixture': {'passages': {'nq': {'depht': 3}}}}},
      'config.data.mixture.passages[nq].depht: no such field; did you mean '
      'depth?',
    ),
    (
      {'data': {'mixture': {'passages': {'nq': 3}}}},
      'config.data.mixture.passages[nq]: expected a section, got 3',
    ),
    (
      {'data': {'mixture': {'weights': 3}}},
      'config.data.mixture.weights: expected a dict from names to numbers > 0, '
      'got 3',
    ),
    (
      {'seed': '1'},
      "config.seed: expected an integer from 0 to 4,294,967,295, got '1'",
    ),
    (
      {'train': {'num_steps': 0}},
      'config.train.num_steps: expected an integer from 1 to 10,000,000, got 0',
    ),
  ],
)
def test_from_dict_refuses(change, message):
  values = schema.to_dict(_valid())
  values['optim'].pop('warmup_steps')
  with pytest.raises(errors.UserError) as e:
    config.from_dict(values | change)
  assert str(e.value) == message
