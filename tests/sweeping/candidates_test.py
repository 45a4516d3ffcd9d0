"""Tests of vtokens.sweeping.candidates."""

import pytest

from vtokens import config
from vtokens.host import errors
from vtokens.sweeping import candidates


def _config(**changes):
  return config.Config(
    workdir='out',
    base=config.Base(path='base'),
    data=config.Data(train=('t.jsonl',), validation=('v.jsonl',)),
    **changes,
  )


def _make(*over, cfg=None):
  return candidates.make(cfg or _config(), candidates.parse(over))


def test_all_combinations_in_order():
  found, same = _make(
    'optim.learning_rate=3e-3,1', 'config.virtual_tokens.init=vocab, text'
  )
  assert same == 0
  assert [(one.name, *one.values.values()) for one in found] == [
    ('1', 0.003, 'vocab'),
    ('2', 0.003, 'text'),
    ('3', 1.0, 'vocab'),
    ('4', 1.0, 'text'),
  ]
  assert str(found[1]) == (
    '2 (optim.learning_rate=0.003, virtual_tokens.init=text)'
  )
  cfg = found[2].config
  assert (cfg.optim.learning_rate, cfg.virtual_tokens.init) == (1.0, 'vocab')
  assert cfg.workdir == 'out/candidates/3'
  assert cfg.data.token_cache == 'out/tokens'
  assert found[0].config.optim.learning_rate == 0.003


def test_values_of_every_type():
  found = candidates.parse(
    [
      'data.passages.number=(1,3),(2, 5)',
      'templates.chat=true,False',
      'optim.warmup_steps=1,0',
      'virtual_tokens.init_text="One, two",three',
      'seed=0',
      'virtual_tokens.init_path=~/a.safetensors',
    ]
  )
  assert found == {
    'data.passages.number': ((1, 3), (2, 5)),
    'templates.chat': (True, False),
    'optim.warmup_steps': (1, 0),
    'virtual_tokens.init_text': ('One, two', 'three'),
    'seed': (0,),
    'virtual_tokens.init_path': ('~/a.safetensors',),
  }


def test_the_same_run_comes_once():
  """init_std does not matter unless init is normal."""
  found, same = _make(
    'virtual_tokens.init=text,normal', 'virtual_tokens.init_std=0.1,0.2'
  )
  assert same == 1
  assert [tuple(one.values.values()) for one in found] == [
    ('text', 0.1),
    ('normal', 0.1),
    ('normal', 0.2),
  ]


def test_names_sort():
  found, _ = _make('seed=' + ','.join(map(str, range(12))))
  assert [one.name for one in found] == sorted(one.name for one in found)


def test_token_cache_of_the_config_and_on_a_store():
  cfg = _config()
  cfg.data.token_cache = 'mine'
  assert _make('seed=1,2', cfg=cfg)[0][0].config.data.token_cache == 'mine'
  cfg = _config()
  cfg.workdir = 'gs://bucket/x'
  one = _make('seed=1,2', cfg=cfg)[0][0]
  assert one.config.data.token_cache == ''
  assert one.config.workdir == 'gs://bucket/x/candidates/1'


@pytest.mark.parametrize(
  'over, parts',
  [
    ('optim.learning_rat=1', ['config.optim.learning_rat', 'learning_rate?']),
    ('optm.learning_rate=1', ['config.optm', 'did you mean optim?']),
    ('optim=1', ['config.optim: a section', 'learning_rate']),
    ('optim.learning_rate.x=1', ['optim.learning_rate is no section']),
    ('data.mixture.weights=1', ['a dict']),
    ('optim.learning_rate', ['expected FIELD=VALUE']),
    ('optim.learning_rate=', ['optim.learning_rate has no values']),
    ('optim.learning_rate=1,x', ['a number > 0', "got 'x'"]),
    ('optim.learning_rate=1,-2', ['a number > 0', 'got -2.0']),
    ('optim.learning_rate=1,1.0', ['optim.learning_rate=1.0 is given twice']),
    ('optim.warmup_steps=1.5', ['an integer', "got '1.5'"]),
    ('templates.chat=maybe', ['True or False', "got 'maybe'"]),
    ('virtual_tokens.init=txt', ['one of text, vocab', "got 'txt'"]),
    ('templates.prompt=What', ['{question}', "got 'What'"]),
    ('templates.prompt=Q {question}\nA,B {question}', ['double quotes']),
    ('templates.prompt="Q {question},B', ['double quotes']),
    ('data.passages.number=1,3', ['data.passages.number', '(1,2)']),
    ('data.passages.number=(3,1),(1,3)', ['(least, most)', 'got (3, 1)']),
    ('base.dtype=float32,bfloat16', ['base.dtype cannot vary', 'share']),
    ('train.num_steps=1,2', ['train.num_steps cannot vary', 'share']),
    ('eval.num_passages=1,2', ['eval.num_passages cannot vary']),
    ('data.validation=("a",),("b",)', ['data.validation cannot vary']),
    ('data.unanswerable=skip,refuse', ['data.unanswerable cannot vary']),
    ('workdir=a,b', ['workdir cannot vary: it changes no number']),
    ('train.log_every=1,2', ['train.log_every cannot vary', 'no number']),
    ('mesh.shape=(1,1,1),(2,1,1)', ['mesh.shape cannot vary', 'no number']),
    ('seed=1', ['only one candidate']),
  ],
)
def test_mistakes(over, parts):
  with pytest.raises(errors.UserError) as caught:
    _make(over)
  for part in parts:
    assert part in str(caught.value)


def test_all_mistakes_at_once():
  with pytest.raises(errors.UserError) as caught:
    _make('optim.lr=1', 'seed=1,2', 'seed=3', 'templates.chat=maybe')
  message = str(caught.value)
  assert '3 mistakes' in message
  for part in ('optim.lr', 'seed is given twice', "'maybe'"):
    assert part in message


def test_combinations_that_do_not_fit():
  cfg = _config(
    optim=config.Optim(warmup_steps=0), train=config.Train(num_steps=4)
  )
  with pytest.raises(errors.UserError) as caught:
    _make('seed=1,2', 'optim.warmup_steps=3,4', cfg=cfg)
  message = str(caught.value)
  assert 'with seed=1, optim.warmup_steps=4: config.optim.warmup_steps' in (
    message
  )
  assert 'with seed=2, optim.warmup_steps=4' in message
  assert 'warmup_steps=3:' not in message


def test_a_validation_is_needed():
  cfg = _config()
  cfg.data.validation = ()
  with pytest.raises(errors.UserError, match=r'config\.data\.validation'):
    _make('seed=1,2', cfg=cfg)


def test_nothing_to_vary():
  with pytest.raises(errors.UserError, match='--over FIELD=VALUES is needed'):
    candidates.parse([])


def test_too_many():
  seeds = ','.join(map(str, range(40)))
  with pytest.raises(errors.UserError, match=r'1,600 candidates.* 1,000'):
    _make(f'seed={seeds}', f'optim.warmup_steps={seeds}')
