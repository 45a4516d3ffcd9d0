"""Tests of vtokens.run.run_identity."""

import dataclasses

import pytest

from vtokens import config
from vtokens.data import training_set
from vtokens.run import run_identity
from vtokens.settings import schema

# What a change of each field does to a run that has begun: nothing, if it has
# no say in the numbers; "content", if what is there is compared instead.
_FIELDS = {
  'workdir': 'free',
  'seed': 'other run',
  'base.path': 'content',
  'base.dtype': 'other run',
  'base.quantize': 'other run',
  'base.attention': 'other run',
  'base.scan_layers': 'other run',
  'virtual_tokens.kind': 'other run',
  'virtual_tokens.num_frozen': 'other run',
  'virtual_tokens.num_virtual_tokens': 'other run',
  'virtual_tokens.position': 'other run',
  'virtual_tokens.init': 'other run',
  'virtual_tokens.init_text': 'other run',
  'virtual_tokens.init_std': 'free',
  'virtual_tokens.init_path': 'content',
  'virtual_tokens.draw': 'other run',
  'virtual_tokens.draw_exponent': 'free',
  'virtual_tokens.num_active': 'free',
  'virtual_tokens.draws_per_example': 'other run',
  'virtual_tokens.always_all': 'other run',
  'templates.passage': 'other run',
  'templates.after_passages': 'other run',
  'templates.prompt': 'other run',
  'templates.concat': 'other run',
  'templates.instruction': 'other run',
  'templates.answer': 'other run',
  'templates.chat': 'other run',
  'templates.chat_answer': 'free',
  'templates.refusal': 'free',
  'data.train': 'content',
  'data.validation': 'content',
  'data.test': 'content',
  'data.corpus': 'content',
  'data.turns': 'other run',
  'data.on_bad_record': 'free',
  'data.max_text_bytes': 'free',
  'data.passages.number': 'other run',
  'data.passages.depth': 'other run',
  'data.passages.order': 'other run',
  'data.passages.retrievers': 'other run',
  'data.passages.distractors': 'other run',
  'data.passages.no_answer': 'other run',
  'data.passages.none': 'other run',
  'data.mixture.weighting': 'other run',
  'data.mixture.temperature': 'free',
  'data.mixture.weights': 'other run',
  'data.mixture.max_examples': 'other run',
  'data.mixture.passages': 'other run',
  'data.mixture.remove_leaks': 'other run',
  'data.batch_size': 'other run',
  'data.examples_per_row': 'other run',
  'data.max_prefix_tokens': 'other run',
  'data.max_suffix_tokens': 'other run',
  'data.max_answer_tokens': 'other run',
  'data.shapes': 'other run',
  'data.num_shapes': 'other run',
  'data.window_batches': 'other run',
  'data.workers': 'free',
  'data.token_cache': 'free',
  'data.unanswerable': 'free',
  'optim.learning_rate': 'other run',
  'optim.warmup_steps': 'other run',
  'optim.schedule': 'other run',
  'optim.clip_norm': 'other run',
  'optim.b1': 'other run',
  'optim.b2': 'other run',
  'optim.eps': 'other run',
  'train.num_steps': 'other run',
  'train.accumulation_steps': 'other run',
  'train.remat': 'other run',
  'train.log_every': 'free',
  'train.validate_every': 'free',
  'train.checkpoint_every': 'free',
  'train.keep_checkpoints': 'free',
  'train.distill.weight': 'other run',
  'train.distill.passages': 'free',
  'train.distill.tokens': 'free',
  'train.distill.run': 'content',
  'train.distill.text': 'free',
  'eval.num_passages': 'other run',
  'eval.retriever': 'other run',
  'eval.shuffle_passages': 'other run',
  'eval.batch_size': 'free',
  'eval.max_new_tokens': 'other run',
  'eval.stop_at_newline': 'other run',
  'eval.temperature': 'other run',
  'eval.top_p': 'free',
  'eval.refusal_bias': 'free',
  'eval.conditions': 'other run',
  'eval.num_active': 'other run',
  'eval.max_validation': 'content',
  'eval.max_test': 'content',
  'mesh.shape': 'free',
  'distributed.coordinator': 'free',
  'distributed.num_processes': 'free',
  'distributed.process_id': 'free',
  'distributed.start_timeout': 'free',
  'distributed.failure_timeout': 'free',
  'tracking.tensorboard': 'free',
  'tracking.wandb_project': 'free',
  'tracking.profile_steps': 'free',
}


def _other(value):
  """Another value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1
  if isinstance(value, str):
    return value + 'x'
  if isinstance(value, dict):
    return {'x': config.Passages()}
  return (
    (*value[:-1], value[-1] + 1)
    if value and value[-1] in (0, 1, 5)
    else (
      *value,
      'x',
    )
  )


def _changed(field, value=None, **more):
  cfg = config.Config()
  for path, changed in more.items():
    section, name = path.split('__')
    setattr(getattr(cfg, section), name, changed)
  before = run_identity.to_dict(cfg)
  *sections, name = field.split('.')
  section = cfg
  for part in sections:
    section = getattr(section, part)
  new = _other(getattr(section, name)) if value is None else value
  setattr(section, name, new)
  return before, cfg


def _names(section, prefix=''):
  for name, kind in schema.types_of(section).items():
    if schema.as_section(kind) is None:
      yield prefix + name
    else:
      yield from _names(kind, f'{prefix}{name}.')


def test_every_field_is_decided_on():
  assert set(_names(config.Config)) == _FIELDS.keys()


@pytest.mark.parametrize('field', _FIELDS)
def test_a_field_that_changes(field):
  """With the defaults: what goes with another choice has no say."""
  blocking, moved = run_identity.compare(*_changed(field))
  expected = _FIELDS[field]
  assert bool(blocking) == (expected == 'other run'), (blocking, moved)
  if field in run_identity.PATHS:
    assert len(moved) == 1
    assert moved[0].startswith(f'config.{field}: ')


@pytest.mark.parametrize(
  ('field', 'with_it'),
  [
    ('virtual_tokens.init_std', {'virtual_tokens__init': 'normal'}),
    ('virtual_tokens.draw_exponent', {'virtual_tokens__draw': 'power'}),
    ('virtual_tokens.num_active', {'virtual_tokens__draw': 'fixed'}),
    ('templates.chat_answer', {'templates__chat': True}),
    ('templates.refusal', {'data__unanswerable': 'refuse'}),
    ('eval.refusal_bias', {'data__unanswerable': 'refuse'}),
    ('data.max_text_bytes', {'data__on_bad_record': 'skip'}),
    ('train.validate_every', {'data__validation': ('x',)}),
    ('eval.top_p', {'eval__temperature': 1.0}),
    *(
      (
        f'train.distill.{name}',
        {'train__distill': config.Distill(weight=0.5, tokens='text')},
      )
      for name in ('weight', 'passages', 'tokens', 'text')
    ),
  ],
)
def test_a_field_with_a_say(field, with_it):
  blocking, _ = run_identity.compare(*_changed(field, **with_it))
  assert len(blocking) == 1
  assert blocking[0].startswith(f'config.{field}: ')


def test_refusals_make_another_run():
  blocking, _ = run_identity.compare(*_changed('data.unanswerable', 'refuse'))
  assert len(blocking) == 1
  same = run_identity.compare(*_changed('data.unanswerable', 'error'))
  assert same == ([], [])


@pytest.mark.parametrize(
  ('field', 'with_it'),
  [
    ('virtual_tokens.init_text', {'virtual_tokens__init': 'vocab'}),
    ('data.num_shapes', {'data__shapes': ((8, 8),)}),
    ('train.distill.text', {'train__distill': config.Distill(weight=0.5)}),
  ],
)
def test_a_field_without_a_say(field, with_it):
  assert run_identity.compare(*_changed(field, **with_it)) == ([], [])


def test_a_run_of_an_earlier_version():
  """What came since has its default."""
  values = run_identity.to_dict(config.Config())
  del values['base']['quantize']
  assert run_identity.compare(values, config.Config()) == ([], [])
  cfg = config.Config(base=dataclasses.replace(config.Base(), quantize='int8'))
  blocking, _ = run_identity.compare(values, cfg)
  assert blocking == ["config.base.quantize: 'none' there, 'int8' now"]


def test_data_sets_of_an_earlier_version(tmp_path):
  """Shards were data sets of their own: draws from them were others."""
  paths = []
  for i in range(2):
    path = tmp_path / f'nq-0000{i}-of-00002.jsonl'
    path.write_text(f'{i}')
    paths.append(str(path))
  cfg = config.Config(data=config.Data(train=tuple(paths)))
  now = run_identity.content(cfg, [training_set.HeldOut([], {})] * 2)
  assert run_identity.compare_content(now, now, cfg) == []
  earlier = {
    'train': dict(zip(paths, now['train'], strict=True)),
    'validation': now['validation'],
    'test': now['test'],
  }
  assert run_identity.compare_content(earlier, now, cfg) == [
    f'config.data.train: {path}: data set by its file there, nq now '
    '(NAME=PATH names it)'
    for path in paths
  ]
  # Of one file, only the name is another.
  cfg = config.Config(data=config.Data(train=(paths[0],)))
  now = run_identity.content(cfg, [training_set.HeldOut([], {})] * 2)
  earlier['train'] = {paths[0]: now['train'][0]}
  assert run_identity.compare_content(earlier, now, cfg) == []
