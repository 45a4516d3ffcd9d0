"""How large numbers of settings can be, in every program."""

import copy
import dataclasses
import typing

import pytest

from vtokens import config
from vtokens.data.build import build_config
from vtokens.evaluation import eval_config, tasks
from vtokens.exports import export_config
from vtokens.host import errors
from vtokens.retrieval import retrieval_config
from vtokens.settings import field_types

_HUGE = 2**31 - 1

_SETTINGS = {
  'train': (
    config.validate,
    config.Config(
      workdir='w',
      base=config.Base(path='b'),
      data=config.Data(
        train=('t',),
        mixture=config.Mixture(passages={'x': config.Passages()}),
      ),
    ),
  ),
  'evaluate': (
    eval_config.validate,
    eval_config.Config(
      workdir='w',
      runs=('r',),
      data=eval_config.Data(sources=('s',)),
      num_active=(1,),
      tasks={
        'x': tasks.Task(
          source='s', format='gsm8k', shots=1, shots_source='other'
        )
      },
    ),
  ),
  'retrieve': (
    retrieval_config.validate,
    retrieval_config.Config(
      workdir='w',
      index_dir='i',
      corpus=retrieval_config.Corpus(paths=('c',)),
      questions=retrieval_config.Questions(paths=('q',)),
      retrievers={'x': retrieval_config.Retriever()},
    ),
  ),
  'build': (
    build_config.validate,
    build_config.Config(
      name='x', splits={'x': build_config.Split(sources=('s',))}
    ),
  ),
  'export': (export_config.validate, export_config.Config(workdir='w')),
}

# Fields that may have any number, and why it does no harm.
_ANY = {
  'train': {
    # The base's longest sequence bounds them, before anything is made.
    'eval.max_new_tokens',
    # How often something is done: then never.
    'train.log_every',
    'train.validate_every',
    'train.checkpoint_every',
    # At most so many: then all.
    'train.keep_checkpoints',
    'eval.max_validation',
    'eval.max_test',
    'data.mixture.max_examples',
    # A norm that no gradient has.
    'optim.clip_norm',
    # Steps that never come.
    'tracking.profile_steps',
    # Exponents whose limit is a constant.
    'data.mixture.temperature',
    # A depth of a list that ends before it.
    'data.passages.depth',
    'data.mixture.passages[x].depth',
    # Only of draw=fixed, which compares it with the table.
    'virtual_tokens.num_active',
    # Division by it: then uniform.
    'eval.temperature',
    # Compared with the devices there are, and with the processes.
    'mesh.shape',
    'distributed.process_id',
  },
  'evaluate': {
    'data.max_questions',
    'data.max_prefix_tokens',
    'data.max_suffix_tokens',
    'decode.max_new_tokens',
    'decode.temperature',
    # Compared with the table.
    'num_active',
    'tasks[x].num_active',
    'tasks[x].max_questions',
    'tasks[x].max_new_tokens',
    'mesh.shape',
    'distributed.process_id',
  },
  'retrieve': set(),
  'build': {
    # At most so many: then all.
    'max_passages',
    'splits[x].max_records',
    # Compared with how many there are.
    'splits[x].expected_records',
  },
  'export': {
    # Compared with how many questions there are.
    'gate.questions',
    'gate.max_new_tokens',
  },
}


def _fields(settings, path=''):
  """(path, holder, key, value with every number in it replaced)."""
  if isinstance(settings, dict):
    for name in settings:
      yield from _fields(settings[name], f'{path[:-1]}[{name}].')
    return
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    value, kind = getattr(settings, field.name), hints[field.name]
    here = path + field.name
    if dataclasses.is_dataclass(value) or (
      isinstance(value, dict) and any(map(dataclasses.is_dataclass, value))
    ):
      yield from _fields(value, f'{here}.')
    elif isinstance(value, dict):
      if value and dataclasses.is_dataclass(next(iter(value.values()))):
        yield from _fields(value, f'{here}.')
      elif typing.get_args(kind)[1] in (int, float):
        yield here, settings, field.name, lambda n: {'x': n}
    elif kind in (int, float):
      yield here, settings, field.name, lambda n: n
    elif here == 'data.shapes':
      yield here, settings, field.name, lambda n: ((n, n),)
    elif int in typing.get_args(kind):
      length = 1 if Ellipsis in typing.get_args(kind) else len(value)
      yield here, settings, field.name, lambda n, m=length: (n,) * m


def _refused(name, path, number):
  validate, settings = _SETTINGS[name]
  settings = copy.deepcopy(settings)
  for here, holder, key, make in _fields(settings):
    if here == path:
      setattr(holder, key, make(number))
      try:
        validate(settings)
      except errors.UserError as e:
        # Or of a field that has to fit this one.
        assert str(e).startswith('config.'), str(e)
        return True
      return False
  raise AssertionError(path)


@pytest.mark.parametrize('name', _SETTINGS)
def test_every_number_has_a_limit(name):
  paths = [path for path, *_ in _fields(copy.deepcopy(_SETTINGS[name][1]))]
  assert len(paths) == len(set(paths)) > 3
  any_number = {
    path
    for path in paths
    # A seed may have any 32 bits.
    if not path.endswith('seed') and not _refused(name, path, _HUGE)
  }
  assert any_number == _ANY[name]
  for path in paths:
    assert _refused(name, path, 10**31), path


@pytest.mark.parametrize(
  'name, path, least',
  [
    ('train', 'train.num_steps', 10_000_001),
    ('train', 'data.window_batches', (1 << 20) // 32 + 1),
    ('train', 'data.batch_size', field_types.MOST_ROWS + 32),
    ('train', 'seed', 2**32),
    ('evaluate', 'report.permutations', 10_000_001),
    ('evaluate', 'report.resamples', 1_000_001),
    ('retrieve', 'top_k', 100_001),
    ('build', 'num_shards', 100_001),
    ('export', 'gate.sampled', 10_000_001),
  ],
)
def test_the_limit_is_what_the_message_says(name, path, least):
  assert _refused(name, path, least)
  assert not _refused(name, path, least - 1 - 31 * (path == 'data.batch_size'))


def test_a_number_of_another_type_is_one_message():
  settings = copy.deepcopy(_SETTINGS['train'][1])
  settings.train.num_steps = 1e9
  with pytest.raises(
    errors.UserError,
    match=r'^config\.train\.num_steps: expected .*, got 1000000000\.0$',
  ):
    config.validate(settings)


def test_a_long_value_is_cut():
  settings = copy.deepcopy(_SETTINGS['train'][1])
  settings.seed = 'x' * 10**6
  with pytest.raises(errors.UserError) as e:
    config.validate(settings)
  assert len(str(e.value)) < 400


def test_numbers_too_small():
  """They overflow where they divide."""
  for path, value in (
    ('data.mixture.temperature', 1e-300),
    ('eval.temperature', 1e-300),
  ):
    assert _refused('train', path, value)
