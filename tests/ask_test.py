"""The serving side of a finished run, on a tiny random base."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from vtokens import ask, config
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.serving import table_file
from vtokens.settings import schema

N = 4
RECORD = Record(
  id='r',
  dataset='d',
  question='what is is?',
  answers=('yes', 'no'),
  passages={
    'bm25': tuple(
      Passage('', '', f'{word} ' * 5) for word in ('big', 'small', 'odd')
    )
  },
)


def make_config() -> config.Config:
  return config.Config(
    data=config.Data(
      max_prefix_tokens=200, max_suffix_tokens=220, max_answer_tokens=16
    ),
    eval=config.Eval(
      batch_size=4,
      num_passages=2,
      shuffle_passages=True,
      max_new_tokens=6,
      stop_at_newline=False,
      num_active=(N,),
    ),
  )


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return partitioning.make_mesh((-1, 1, 1))


@pytest.fixture(scope='module')
def base(tiny_dir, mesh) -> frozen_base.FrozenBase:
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'), mesh
  )


@pytest.fixture(scope='module')
def table(base) -> TrainedTokens:
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(N, base.config.embed_dim)).astype(np.float32)
  return TrainedTokens(
    'a', rows, Assembler.for_run(base.tokenizer, make_config())
  )


@pytest.fixture(scope='module')
def workdir(base, table, tiny_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  cfg = make_config()
  cfg.base = config.Base(path=str(tiny_dir), dtype='float32')
  cfg.virtual_tokens.num_virtual_tokens = N
  cfg.virtual_tokens.num_active = N
  cfg.data.train = ('unused.jsonl',)
  values = schema.to_dict(cfg)
  del values['workdir']
  (path / 'config.json').write_text(json.dumps(values))
  table_file.save(
    path / 'table.safetensors', table.values, {'fingerprint': base.fingerprint}
  )
  return path


def test_answers_as_the_evaluator_does(workdir, base, mesh, table):
  texts = [passage.text for passage in RECORD.passages['bm25']]
  replies = ask.ask(str(workdir), RECORD.question, texts)
  assert list(replies) == [
    'without passages',
    'with an instruction',
    'instruction, chat template',
    f'with {N} virtual tokens',
  ]
  # The run showed them shuffled; who asks gives them an order.
  decode = make_config().eval
  decode.shuffle_passages = False
  decode.num_passages = 3
  prompter = Prompter(table.assembler, decode, seed=0)
  evaluator = Evaluator(Answerer(base, mesh, decode, 0), prompter)
  variants = [bare_variant('prompt'), tokens_variant(table, N)]
  expected = evaluator.answers([RECORD], variants, label='')
  assert replies['with an instruction'] == expected['prompt'][0]
  assert replies[f'with {N} virtual tokens'] == (expected[f'tokens_k{N}'][0])


def test_tokens_stand_where_they_were_trained(
  workdir, base, mesh, table, tmp_path
):
  other = tmp_path / 'last'
  shutil.copytree(workdir, other)
  values = json.loads((other / 'config.json').read_text())
  values['virtual_tokens']['position'] = 'last'
  (other / 'config.json').write_text(json.dumps(values))
  replies = ask.ask(str(other), RECORD.question, [])
  label = f'with {N} virtual tokens'
  assert replies[label] != ask.ask(str(workdir), RECORD.question, [])[label]
  moved = dataclasses.replace(table.assembler, position='last')
  variant = tokens_variant(dataclasses.replace(table, assembler=moved), N)
  decode = make_config().eval
  answerer = Answerer(base, mesh, decode, 0)
  evaluator = Evaluator(answerer, Prompter(moved, decode, 0))
  bare = dataclasses.replace(RECORD, passages={})
  [expected] = evaluator.answers([bare], [variant], label='')[variant.name]
  assert replies[label] == expected


def test_a_run_on_a_quantised_base(workdir, tmp_path, monkeypatch):
  """Is asked on just that."""
  other = tmp_path / 'int4'
  shutil.copytree(workdir, other)
  values = json.loads((other / 'config.json').read_text())
  values['base']['quantize'] = 'int4'
  (other / 'config.json').write_text(json.dumps(values))
  asked = []

  class Watched(Answerer):
    def __init__(self, base, *arguments):
      asked.append(base)
      super().__init__(base, *arguments)

  monkeypatch.setattr(ask, 'Answerer', Watched)
  ask.ask(str(other), RECORD.question, ['big'])
  [base] = asked
  assert base.quantize == 'int4'
  assert base.decoder().layers.mlp.gate.values.dtype == 'int4'


def test_fewer_tokens(workdir):
  replies = ask.ask(str(workdir), 'what?', ['big'], 1)
  assert 'with 1 virtual tokens' in replies


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_active': 0}, r'--num_active=0: expected .* from 1 to 4'),
    ({'num_active': N + 1}, r'--num_active=5: expected .* from 1 to 4'),
    ({'num_active': True}, r'--num_active=True: expected .* from 1 to 4'),
    ({'num_active': 2.0}, r'--num_active=2.0: expected .* from 1 to 4'),
    ({'question': ' '}, '--question'),
    ({'question': None}, '--question: expected a text, got None'),
    ({'question': 'half \ud83d'}, '--question: character 5 is half'),
    ({'passages': 'big'}, "passages: expected a list .*, got str 'big'"),
    ({'passages': ['big', None]}, r'passages\[1\]: expected a text'),
    ({'passages': ['\udcff']}, r'passages\[0\]: character 0 is half'),
    (
      {'question': 'q' * 300},
      r'do not fit config\.data\.max_suffix_tokens=220',
    ),
  ],
)
def test_bad_input(workdir, change, message):
  arguments = {
    'question': 'what?',
    'passages': ['big'],
    'num_active': None,
    **change,
  }
  with pytest.raises(errors.UserError, match=message):
    ask.ask(str(workdir), **arguments)


def test_no_run_there(tmp_path):
  with pytest.raises(errors.UserError, match=r'--workdir: .* no finished run'):
    ask.ask(str(tmp_path), 'what?', [])


@pytest.mark.parametrize('width', [1, 31, 128])
def test_a_table_of_another_width(workdir, table, tmp_path, width):
  """Though it names this base."""
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text((workdir / 'config.json').read_text())
  _, metadata = table_file.load(workdir / 'table.safetensors')
  rows = np.zeros((len(table.values), width), np.float32)
  table_file.save(other / 'table.safetensors', rows, metadata)
  with pytest.raises(errors.UserError, match=f', {width}., expected a width'):
    ask.ask(str(other), 'what?', ['big'])


def test_another_base(workdir, table, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text((workdir / 'config.json').read_text())
  table_file.save(
    other / 'table.safetensors', table.values, {'fingerprint': 'f' * 64}
  )
  with pytest.raises(errors.UserError, match='another base'):
    ask.ask(str(other), 'what?', ['big'])
