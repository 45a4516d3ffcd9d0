"""A condition that is added from outside of the package."""

import types

import numpy as np
import pytest
import tiny_models

from vtokens import config
from vtokens.data.assemble import Assembler, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.data.records import GIVEN, Passage, Record
from vtokens.evaluation import conditions, eval_config
from vtokens.evaluation.asking import cell_plan
from vtokens.evaluation.asking.prompter import Prompter
from vtokens.evaluation.conditions import Condition
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import load_tokenizer

BRIEF = Condition(
  template='In one word: {question}', tokens=True, text='tokens, one word'
)


@pytest.fixture
def brief():
  conditions.add('brief', BRIEF)
  yield 'brief'
  del conditions.CONDITIONS['brief']


def test_a_condition_from_outside(brief, tmp_path):
  cfg = eval_config.Config(
    workdir=str(tmp_path),
    runs=('run',),
    data=eval_config.Data(sources=('questions.jsonl',)),
    conditions=(brief,),
    num_active=(2, 1),
  )
  eval_config.validate(cfg)
  tiny_models.save_tokenizer(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  assembler = Assembler(
    PromptEncoder(tokenizer, config.Templates()), Limits(prefix=200, suffix=99)
  )
  table = TrainedTokens('run', np.zeros((2, 4), np.float32), assembler)
  model = types.SimpleNamespace(name='m', tables={'run': table})
  [group] = cell_plan.groups(cfg, model, ['d'])
  [two, one] = group.variants
  assert (two.num_active, one.num_active) == (2, 1)
  assert two.applies('num_passages') and two.applies('num_active')
  assert two.file_name() == 'd.m.brief.run.k2.m3'
  # The ids of its prompt, next to the tokenizer's own.
  record = Record('r', 'd', 'Who?', (), {GIVEN: (Passage('', '', 'He.'),)})
  shown = config.Shown(num_passages=3, retriever=GIVEN)
  example = Prompter(assembler, shown, 0).example(record, group.variants[one])
  assert example.num_active == 1
  assert example.after.tolist() == tokenizer.encode('In one word: Who?')
  text = tokenizer.decode(example.prefix.tolist())
  assert 'He.' in text and 'Who?' not in text


def test_a_name_stands_for_one_condition(brief):
  conditions.add(brief, BRIEF)
  with pytest.raises(errors.UserError, match='condition brief'):
    conditions.add(brief, Condition())
  assert conditions.CONDITIONS[brief] == BRIEF


@pytest.mark.parametrize(
  'field, condition',
  [
    ('template', Condition(template='prompts')),
    ('template', Condition(template='Who wrote it?')),
    ('template', Condition(template='{question} {answer}')),
    ('position', Condition(tokens=True, position='end')),
    ('position', Condition(position='first')),
  ],
)
def test_a_condition_that_is_none(field, condition):
  with pytest.raises(errors.UserError, match=f'condition bad: {field}: '):
    conditions.add('bad', condition)
  assert 'bad' not in conditions.CONDITIONS
