"""Conditions, answers and losses of the evaluator on a tiny random base."""

import dataclasses
import itertools
import json

import flax.nnx as nnx
import jax
import numpy as np
import pytest
import torch
import transformers

from vtokens import (
  ask,
  config,
  errors,
  evaluate,
  partitioning,
  schema,
  virtual_tokens,
)
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage, Record
from vtokens.models import base as base_lib

N = 4
RECORDS = [
  Record(
    id=f'r{i}',
    dataset='d',
    question='what' + ' is' * (i % 4) + '?',
    answers=('yes', 'no'),
    passages={
      'bm25': tuple(
        Passage('', '', f'{word} ' * (1 + 2 * i)) for word in ('big', 'small')
      )
    },
  )
  for i in range(7)
]


@pytest.fixture(scope='module')
def base(tiny_dir) -> base_lib.FrozenBase:
  return base_lib.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((1, 1, -1)),
  )


@pytest.fixture(scope='module')
def table(base) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.normal(size=(N, base.config.embed_dim)).astype(np.float32)


def make_config(position='middle', **settings) -> config.Config:
  return config.Config(
    virtual_tokens=config.VirtualTokens(position=position),
    data=config.Data(
      max_prefix_tokens=200, max_suffix_tokens=220, max_answer_tokens=16
    ),
    eval=config.Eval(
      **{
        'batch_size': 4,
        'num_passages': 2,
        'shuffle_passages': True,
        'max_new_tokens': 6,
        'stop_at_newline': False,
        **settings,
      }
    ),
  )


def shown(record: Record) -> tuple[tuple[int, Passage], ...]:
  return pipeline.shown_passages(record, make_config().eval, 0)


def make_evaluator(base, **settings) -> evaluate.Evaluator:
  cfg = make_config(**settings)
  return evaluate.Evaluator(
    base, Assembler.for_run(base.tokenizer, cfg), cfg.eval, seed=0
  )


CONDITIONS = [
  *evaluate.UNTRAINED.values(),
  evaluate.tokens_condition(1),
  evaluate.tokens_condition(N),
]


@pytest.fixture(scope='module')
def answers(base, table) -> dict[str, list[str]]:
  return make_evaluator(base).answers(RECORDS, CONDITIONS, table, label='')


def test_answers_are_those_of_torch(base, table, tiny_dir, answers):
  """Each condition against transformers: embeddings of the ids, generate."""
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table)]
  )
  assembler = Assembler.for_run(base.tokenizer, make_config())
  for condition in CONDITIONS:
    for record, answer in zip(RECORDS, answers[condition.name], strict=True):
      example = assembler(
        shown(record) if condition.passages else (),
        record.question,
        num_active=condition.num_active,
        prompt=condition.prompt,
        chat=condition.chat,
      )
      ids = [*example.prefix, *example.suffix(base.config.vocab_size)]
      with torch.no_grad():
        out = model.generate(
          inputs_embeds=rows[torch.tensor(ids)][None],
          attention_mask=torch.ones(1, len(ids), dtype=torch.long),
          max_new_tokens=6,
          do_sample=False,
          pad_token_id=0,
          eos_token_id=sorted(base.tokenizer.end_ids),
        )[0].tolist()
      out = list(
        itertools.takewhile(lambda i: i not in base.tokenizer.end_ids, out)
      )
      known = set(base.tokenizer.ids)
      text = base.tokenizer.decode([i for i in out if i in known]).strip()
      assert answer == text, (condition.name, record.id)


def test_a_prefix_is_encoded_once_for_all_that_share_it(base, monkeypatch):
  calls = []
  encode = evaluate.generate.encode_prefix

  def counted(*arguments, **options):
    calls.append(1)
    return encode(*arguments, **options)

  monkeypatch.setattr(evaluate.generate, 'encode_prefix', counted)
  table = np.zeros((N, base.config.embed_dim), np.float32)
  names = ('concat', 'prompt')
  conditions = [evaluate.UNTRAINED[name] for name in names]
  make_evaluator(base).answers(
    RECORDS[:1], [*conditions, evaluate.tokens_condition(N)], table, label=''
  )
  assert len(calls) == 1


def test_conditions_differ(answers):
  assert len({tuple(texts) for texts in answers.values()}) == len(CONDITIONS)


@pytest.fixture(scope='module')
def two_retrievers() -> list[Record]:
  """The same passages as `bm25`, and others."""
  return [
    dataclasses.replace(
      record,
      passages={
        **record.passages,
        'dense': (Passage('', '', 'wide'), Passage('', '', 'narrow')),
        'gold': (Passage('', '', 'golden'),),
      },
    )
    for record in RECORDS
  ]


def test_passages_are_those_of_the_retriever_that_is_asked_for(
  base, table, answers, two_retrievers
):
  conditions = [evaluate.UNTRAINED['concat'], evaluate.tokens_condition(N)]
  found = {
    name: make_evaluator(base, retriever=name).answers(
      two_retrievers, conditions, table, label=''
    )
    for name in ('bm25', 'dense', 'gold')
  }
  for condition in conditions:
    assert found['bm25'][condition.name] == answers[condition.name]
  texts = {tuple(answers[f'tokens_k{N}']) for answers in found.values()}
  assert len(texts) == 3


def test_one_of_several_retrievers_has_to_be_named(base, two_retrievers):
  evaluator = make_evaluator(base)
  with pytest.raises(errors.UserError, match=r'record r0 .* bm25, dense; say'):
    evaluator.check_fits(two_retrievers, CONDITIONS)
  # Where no passages are shown, it does not matter.
  evaluator.check_fits(two_retrievers, [evaluate.UNTRAINED['closed_book']])
  make_evaluator(base, retriever='dense').check_fits(two_retrievers, CONDITIONS)


def test_order_and_number_of_passages(base):
  """What the conditions show, read back from the prefix."""
  record = dataclasses.replace(
    RECORDS[0],
    passages={'bm25': tuple(Passage('', '', w) for w in ('a', 'b', 'c', 'd'))},
  )
  records = [dataclasses.replace(record, id=f'r{i}') for i in range(30)]

  def letters(**settings):
    evaluator = make_evaluator(base, **settings)
    examples = evaluator._assemble(records, evaluate.UNTRAINED['prompt'])
    return [
      ''.join(c for c in base.tokenizer.decode(e.prefix) if c in 'abcd')
      for e in examples
    ]

  assert set(letters(num_passages=3, shuffle_passages=False)) == {'abc'}
  shuffled = letters(num_passages=3, shuffle_passages=True)
  assert {''.join(sorted(text)) for text in shuffled} == {'abc'}
  assert len(set(shuffled)) == 6
  assert letters(num_passages=3, shuffle_passages=True) == shuffled
  assert set(letters(num_passages=9, shuffle_passages=False)) == {'abcd'}
  assert set(letters(num_passages=0)) == {''}


def test_a_question_that_does_not_fit_is_found_before(base):
  long = dataclasses.replace(RECORDS[1], question='why? ' * 40)
  answer = dataclasses.replace(RECORDS[2], answers=('x' * 30, 'y'))
  evaluator = make_evaluator(base)
  evaluator.check_fits([*RECORDS, answer], CONDITIONS)
  with pytest.raises(errors.UserError, match=r'record r1: .*max_suffix_tokens'):
    evaluator.check_fits([*RECORDS, long], CONDITIONS)
  with pytest.raises(errors.UserError, match=r'record r2: .*max_answer_tokens'):
    evaluator.check_fits([*RECORDS, answer], CONDITIONS, answers=True)


@pytest.mark.parametrize('batch_size', [1, 5])
def test_answers_do_not_depend_on_the_batch(base, table, answers, batch_size):
  evaluator = make_evaluator(base, batch_size=batch_size)
  shuffled = RECORDS[::-1]
  conditions = [evaluate.UNTRAINED['concat'], evaluate.tokens_condition(N)]
  again = evaluator.answers(shuffled, conditions, table, label='')
  for name, texts in again.items():
    assert texts[::-1] == answers[name]


def test_without_tokens_the_table_is_not_looked_at(base, table, answers):
  poisoned = np.full_like(table, np.nan)
  again = make_evaluator(base).answers(
    RECORDS, [evaluate.UNTRAINED['prompt']], poisoned, label=''
  )
  for name, texts in again.items():
    assert texts == answers[name]


def test_only_the_first_k_rows_count(base, table, answers):
  changed = table.copy()
  changed[1:] = 7.0
  again = make_evaluator(base).answers(
    RECORDS, [evaluate.tokens_condition(1)], changed, label=''
  )
  assert again['tokens_k1'] == answers['tokens_k1']


def test_validation_loss_is_that_of_torch(base, table, tiny_dir, answers):
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table)]
  )
  assembler = Assembler.for_run(base.tokenizer, make_config())
  nll, count = 0.0, 0
  for record in RECORDS:
    example = assembler(
      shown(record),
      record.question,
      answer='yes',
      num_active=N,
    )
    ids = [*example.prefix, *example.suffix(base.config.vocab_size)]
    with torch.no_grad():
      logits = model(inputs_embeds=rows[torch.tensor(ids)][None]).logits[0]
    targets = torch.from_numpy(example.targets).long()
    nll += torch.nn.functional.cross_entropy(
      logits[-len(targets) :], targets, reduction='sum'
    ).item()
    count += len(targets)
  loss, predictions = make_evaluator(base).validate(RECORDS, N, table)
  np.testing.assert_allclose(loss, nll / count, rtol=1e-5)
  assert predictions == answers[f'tokens_k{N}']


@pytest.mark.parametrize('position', ['first', 'last'])
def test_tokens_at_another_position_against_torch(
  base, table, tiny_dir, answers, position
):
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table)]
  )
  encode = base.tokenizer.encode
  virtual = [base.config.vocab_size + i for i in range(N)]
  nll, count, expected = 0.0, 0, []
  for record in RECORDS:
    passages = ''.join(
      f'[{i}] {p.text}\n' for i, (_, p) in enumerate(shown(record), 1)
    )
    text = encode(f'{passages}\nQuestion: {record.question}\nAnswer:')
    ids = [*virtual, *text] if position == 'first' else [*text, *virtual]
    targets = [*encode(' yes'), base.tokenizer.eos_id]
    with torch.no_grad():
      out = model.generate(
        inputs_embeds=rows[torch.tensor(ids)][None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=sorted(base.tokenizer.end_ids),
      )[0].tolist()
      whole = torch.tensor([*ids, *targets[:-1]])
      logits = model(inputs_embeds=rows[whole][None]).logits[0]
    out = itertools.takewhile(lambda i: i not in base.tokenizer.end_ids, out)
    known = set(base.tokenizer.ids)
    expected.append(
      base.tokenizer.decode([i for i in out if i in known]).strip()
    )
    nll += torch.nn.functional.cross_entropy(
      logits[-len(targets) :], torch.tensor(targets), reduction='sum'
    ).item()
    count += len(targets)
  evaluator = make_evaluator(base, position=position)
  evaluator.check_fits(RECORDS, CONDITIONS, answers=True)
  # Side by side with a condition that has no tokens, as `ask` does it.
  conditions = [evaluate.UNTRAINED['prompt'], evaluate.tokens_condition(N)]
  found = evaluator.answers(RECORDS, conditions, table, label='')
  assert found[f'tokens_k{N}'] == expected
  assert expected != answers[f'tokens_k{N}']
  assert found['prompt'] == answers['prompt']
  loss, predictions = evaluator.validate(RECORDS, N, table)
  np.testing.assert_allclose(loss, nll / count, rtol=1e-5)
  assert predictions == expected


def test_stops_when_asked(base, table):
  class Enough(Exception):
    pass

  cfg = make_config()

  def check():
    raise Enough

  evaluator = evaluate.Evaluator(
    base, Assembler.for_run(base.tokenizer, cfg), cfg.eval, 0, check
  )
  with pytest.raises(Enough):
    evaluator.answers(RECORDS, CONDITIONS, table, label='')


def test_compiles_once_for_each_shape(base, table, answers):
  from vtokens import generate

  evaluator = make_evaluator(base)
  before = generate.greedy._cache_size(), generate.encode_prefix._cache_size()
  evaluator.answers(RECORDS, CONDITIONS, 2 * table, label='')
  after = generate.greedy._cache_size(), generate.encode_prefix._cache_size()
  assert before == after


def test_more_tokens_than_rows_is_an_error(base, table):
  with pytest.raises(errors.UserError, match=r'5 virtual tokens .* has 4'):
    make_evaluator(base).answers(
      RECORDS, [evaluate.tokens_condition(N + 1)], table, label=''
    )


def test_cut_passages_are_reported(base, table, capsys):
  evaluator = make_evaluator(base)
  long = dataclasses.replace(
    RECORDS[0],
    passages={'bm25': (Passage('', '', 'a' * 150), Passage('', '', 'b' * 150))},
  )
  evaluator.answers(
    [long, RECORDS[1]], [evaluate.tokens_condition(1)], table, label='test'
  )
  assert 'test: tokens_k1: passages that did not fit' in (
    out := capsys.readouterr().out
  )
  assert '0 dropped, 1 cut' in out


def test_predictions_file(tmp_path):
  path = tmp_path / 'sub' / 'p.jsonl'
  evaluate.write_predictions(path, RECORDS[:2], ['Yes!', 'maybe'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['em'] for row in rows] == [1.0, 0.0]
  assert rows[0] == {
    'id': 'r0',
    'dataset': 'd',
    'question': 'what?',
    'prediction': 'Yes!',
    'answers': ['yes', 'no'],
    'em': 1.0,
    'f1': 1.0,
  }


class TestAsk:
  """The serving side of a finished run."""

  @pytest.fixture(scope='class')
  def workdir(self, base, table, tiny_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp('run')
    cfg = make_config(num_active=(N,))
    cfg.base = config.Base(path=str(tiny_dir), dtype='float32')
    cfg.virtual_tokens.num_virtual_tokens = N
    cfg.virtual_tokens.num_active = N
    cfg.data.train = ('unused.jsonl',)
    values = schema.to_dict(cfg)
    del values['workdir']
    (path / 'config.json').write_text(json.dumps(values))
    virtual_tokens.save_table(
      path / 'table.safetensors', table, {'fingerprint': base.fingerprint}
    )
    return path

  def test_answers_as_the_evaluator_does(self, workdir, base, table):
    record = RECORDS[2]
    texts = [passage.text for passage in record.passages['bm25']]
    replies = ask.ask(str(workdir), record.question, texts)
    assert list(replies) == [
      'without passages',
      'with an instruction',
      'instruction, chat template',
      f'with {N} virtual tokens',
    ]
    # The run showed them shuffled; who asks gives them an order.
    expected = make_evaluator(base, shuffle_passages=False).answers(
      [record],
      [evaluate.UNTRAINED['prompt'], evaluate.tokens_condition(N)],
      table,
      label='',
    )
    assert replies['with an instruction'] == expected['prompt'][0]
    assert replies[f'with {N} virtual tokens'] == (expected[f'tokens_k{N}'][0])

  @pytest.mark.parametrize('position', ['first', 'last'])
  def test_tokens_stand_where_the_run_had_them(
    self, workdir, base, table, tmp_path, position
  ):
    values = json.loads((workdir / 'config.json').read_text())
    values['virtual_tokens']['position'] = position
    (tmp_path / 'config.json').write_text(json.dumps(values))
    (tmp_path / 'table.safetensors').write_bytes(
      (workdir / 'table.safetensors').read_bytes()
    )
    record = RECORDS[2]
    texts = [passage.text for passage in record.passages['bm25']]
    replies = ask.ask(str(tmp_path), record.question, texts)
    conditions = [evaluate.UNTRAINED['prompt'], evaluate.tokens_condition(N)]
    expected = make_evaluator(
      base, position=position, shuffle_passages=False, batch_size=1
    ).answers([record], conditions, table, label='')
    assert replies['with an instruction'] == expected['prompt'][0]
    assert replies[f'with {N} virtual tokens'] == expected[f'tokens_k{N}'][0]

  def test_fewer_tokens(self, workdir):
    replies = ask.ask(str(workdir), 'what?', ['big'], 1)
    assert 'with 1 virtual tokens' in replies

  @pytest.mark.parametrize(
    ('change', 'message'),
    [
      ({'num_active': 0}, r'--num_active=0: expected 1 to 4'),
      ({'num_active': N + 1}, r'--num_active=5: expected 1 to 4'),
      ({'question': ' '}, '--question'),
      (
        {'question': 'q' * 300},
        r'do not fit config\.data\.max_suffix_tokens=220',
      ),
    ],
  )
  def test_bad_input(self, workdir, change, message):
    arguments = {
      'question': 'what?',
      'passages': ['big'],
      'num_active': None,
      **change,
    }
    with pytest.raises(errors.UserError, match=message):
      ask.ask(str(workdir), **arguments)

  def test_no_run_there(self, tmp_path):
    with pytest.raises(errors.UserError, match='no run there'):
      ask.ask(str(tmp_path), 'what?', [])

  def test_another_base(self, workdir, table, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'config.json').write_text((workdir / 'config.json').read_text())
    virtual_tokens.save_table(
      other / 'table.safetensors', table, {'fingerprint': 'f' * 64}
    )
    with pytest.raises(errors.UserError, match='another base'):
      ask.ask(str(other), 'what?', ['big'])


def test_base_is_not_changed_by_answers(base, table):
  def digest():
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(base.params)]

  before = digest()
  make_evaluator(base).answers(RECORDS, CONDITIONS, table, label='')
  assert digest() == before
  assert isinstance(base.params, nnx.State)
  assert dataclasses.is_dataclass(base.config)
