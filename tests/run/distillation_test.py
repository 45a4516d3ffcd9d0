"""Which teacher the settings ask for."""

import pytest
import trained_runs

from vtokens import config
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.run import distillation


@pytest.fixture(scope='module')
def base(tiny_dir):
  return frozen_base.open_base(config.Base(path=str(tiny_dir), dtype='float32'))


def configure(always_all=False, max_new_tokens=32, **settings):
  return config.Config(
    virtual_tokens=config.VirtualTokens(
      num_virtual_tokens=4,
      draws_per_example=1 + always_all,
      always_all=always_all,
    ),
    train=config.Train(distill=config.Distill(**{'weight': 0.5} | settings)),
    eval=config.Eval(max_new_tokens=max_new_tokens),
  )


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({'weight': 0.0}, None),
    ({'weight': 0.0, 'passages': 'gold', 'tokens': 'run'}, None),
    ({}, (False, 4)),
    ({'always_all': True}, None),
    ({'always_all': True, 'passages': 'gold'}, (True, 4)),
    ({'passages': 'gold'}, (True, 4)),
  ],
)
def test_a_teacher_that_has_the_values_being_trained(base, settings, expected):
  teacher = distillation.open_teacher(configure(**settings), base)
  if expected is None:
    assert teacher is None
    return
  assert teacher.trainable is teacher.values is None
  assert (teacher.inputs.gold, teacher.inputs.num_active) == expected
  assert len(teacher.inputs.text) == 0


def test_words_teach(base):
  settings = {'tokens': 'text', 'text': 'Answer. '}
  teacher = distillation.open_teacher(configure(**settings), base)
  assert teacher.inputs.num_active == 0
  assert base.tokenizer.decode(teacher.inputs.text.tolist()) == 'Answer. '
  number = len(teacher.inputs.text)
  # The base is opened for sequences with so many more tokens.
  assert distillation.open_teacher(
    configure(max_new_tokens=number - 4, **settings), base
  )
  with pytest.raises(errors.UserError, match=f'{number} tokens, expected at'):
    distillation.open_teacher(
      configure(max_new_tokens=number - 5, **settings), base
    )


def test_a_run_teaches(base, tiny_dir, tmp_path):
  trained_runs.write_run(tmp_path / 'run', tiny_dir)
  settings = {'tokens': 'run', 'run': str(tmp_path / 'run')}
  teacher = distillation.open_teacher(configure(**settings), base)
  assert teacher.inputs.num_active == trained_runs.ROWS
  assert teacher.values.shape == (trained_runs.ROWS, base.config.embed_dim)
  cfg = configure(**settings)
  cfg.templates.prompt = 'Q: {question}'
  with pytest.raises(errors.UserError) as caught:
    distillation.open_teacher(cfg, base)
  assert str(caught.value) == (
    f'config.train.distill.run: {tmp_path / "run"} was trained with '
    "config.templates.prompt='Question: {question}\\nAnswer:', expected "
    "'Q: {question}' as in this run"
  )
