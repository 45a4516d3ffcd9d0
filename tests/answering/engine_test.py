"""The engine answers as the evaluation does, alone and among others."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import tiny_models
import trained_runs

from vtokens.answering import Completion, Engine, Request, trained_source
from vtokens.data.records import GIVEN, Passage, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.exports import trained_table
from vtokens.host import errors
from vtokens.run.workdir import RunDir
from vtokens.serving import artifact

PASSAGES = ['The tower was completed in 1859.', 'Big Ben is a bell.']


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  """Runs of two tables and of keys and values on one base."""
  root = tmp_path_factory.mktemp('engine')
  tiny_models.save(root / 'base')
  trained_runs.write_run(root / 'a', root / 'base')
  trained_runs.write_run(root / 'b', root / 'base', position='last')
  trained_runs.write_keys_values(root / 'kv', root / 'a')
  trained_runs.write_run(
    root / 'refuse',
    root / 'base',
    unanswerable='refuse',
    # Bytes are tokens, and a blank would be the first of all answers.
    templates={'answer': '{answer}'},
  )
  names = ('a', 'b', 'kv', 'refuse')
  return root, {name: RunDir(root / name).path for name in names}


@pytest.fixture(scope='module')
def engine(places):
  tables = places[1]
  engine = Engine.open(tables['a'], 'a', batch_size=4)
  engine.add('b', tables['b'])
  engine.add('kv', tables['kv'])
  engine.add('refuse', tables['refuse'])
  return engine


def ask(question='When was it completed?', **changes) -> Request:
  values = {'table': 'a', 'passages': PASSAGES, 'max_new_tokens': 9}
  return Request(question=question, **{**values, **changes})


def tokens(completion: Completion) -> tuple:
  return completion.text, completion.ids, completion.stop


def test_answers_as_an_evaluation(engine, places):
  finished = RunDir(places[1]['a']).read('--workdir')
  decode = dataclasses.replace(
    finished.config.eval, num_passages=2, batch_size=1, retriever=GIVEN
  )
  mesh = partitioning.make_mesh((-1, 1, 1))
  trained = engine.tables['a'].tokens
  prompter = Prompter(trained.assembler, decode, seed=0)
  evaluator = Evaluator(Answerer(engine.base, mesh, decode, 0), prompter)
  passages = tuple(Passage('', '', text) for text in PASSAGES)
  record = Record('q', 'd', 'When was it?', (), {GIVEN: passages})
  variants = {
    'concat': bare_variant('concat'),
    'closed_book': bare_variant('closed_book'),
    'tokens_k5': tokens_variant(trained, 5),
    'tokens_k2': tokens_variant(trained, 2),
  }
  expected = evaluator.answers([record], [*variants.values()], label='')
  found = engine.answer(
    [
      Request(
        question=record.question,
        passages=PASSAGES,
        table='a',
        condition=name.partition('_k')[0],
        k=variant.num_active or None,
      )
      for name, variant in variants.items()
    ]
  )
  for name, answer in zip(variants, found, strict=True):
    [other] = expected[name]
    assert (answer.text, answer.stop) == (other.text, other.stop)
    assert answer.completion_tokens == other.num_tokens
    assert answer.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert answer.shown == other.shown


def some_requests() -> list[Request]:
  return [
    ask(),
    ask('Who?', passages=[], table='b', k=3),
    ask(table='kv', k=2),
    ask(stop_at_newline=False, max_new_tokens=20),
    ask(condition='concat', table=None),
    Request(prompt='Once upon', max_new_tokens=17),
    Request(prompt=[5, 6, 7], max_new_tokens=3, temperature=0.9, seed=3),
    ask(temperature=1.5, top_p=0.7, seed=1, id='x'),
    ask(temperature=1.5, top_p=1.0, seed=1, id='x', num_logprobs=3),
    Request(messages=[{'role': 'user', 'content': 'Hi'}], max_new_tokens=5),
  ]


@pytest.fixture(scope='module')
def alone(engine):
  return [engine.answer([request])[0] for request in some_requests()]


def test_together_as_alone(engine, alone):
  together = engine.answer(some_requests())
  assert [*map(tokens, together)] == [*map(tokens, alone)]
  for one, other in zip(together, alone, strict=True):
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_a_stream_is_the_answer_in_parts(engine, alone):
  parts = list(engine.stream(some_requests(), every=2))
  for number, whole in enumerate(alone):
    own = [part for part in parts if part.number == number]
    assert ''.join(part.text for part in own) == whole.text
    ids = itertools.chain.from_iterable(part.ids for part in own)
    assert tuple(ids) == whole.ids
    assert [part.completion for part in own[:-1]] == [None] * (len(own) - 1)
    assert tokens(own[-1].completion) == tokens(whole)
  assert any(part.text for part in parts if part.completion is None)


def test_most_likely_tokens(engine):
  [found] = engine.answer([ask(num_logprobs=3, stop_at_newline=False)])
  assert len(found.top) == len(found.ids) > 0
  for token, value, top in zip(
    found.ids, found.log_probs, found.top, strict=True
  ):
    assert len(top) == 3
    assert top[0] == (token, pytest.approx(value, abs=1e-5))
    assert top[0][1] >= top[1][1] >= top[2][1]


def test_a_stop_text_ends_an_answer(engine):
  whole = ask(stop_at_newline=False, max_new_tokens=24)
  [long] = engine.answer([whole])
  middle = long.text[len(long.text) // 2 :][:2]
  assert middle
  stopping = dataclasses.replace(whole, stop=[middle])
  [found] = engine.answer([stopping])
  assert found.stop == 'stop'
  assert found.text == long.text[: long.text.find(middle)].strip()
  assert len(found.ids) < len(long.ids)
  assert found.ids == long.ids[: len(found.ids)]
  parts = engine.stream([stopping], every=1)
  assert ''.join(part.text for part in parts) == found.text


def test_a_prefix_is_encoded_once(engine):
  passages = ['A passage of its own.', 'And another.']
  before = engine.prefixes.misses
  first, _ = engine.answer(
    [ask(passages=passages), ask('Else?', passages=passages)]
  )
  [again] = engine.answer([ask(passages=passages, num_logprobs=1)])
  assert engine.prefixes.misses == before + 1
  assert tokens(again) == tokens(first)


def test_kept_prefixes_are_bounded(places):
  small = Engine.open(places[1]['a'], prefix_cache_bytes=100_000)
  for i in range(8):
    small.answer([ask(passages=[f'Passage {i}.' * 3], table='tokens')])
    assert 0 < small.prefixes.size <= 100_000


def test_threads(engine, alone):
  found = {}

  def run(number):
    found[number] = engine.answer(some_requests()[number : number + 1])[0]

  threads = [threading.Thread(target=run, args=(i,)) for i in range(len(alone))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [tokens(found[i]) for i in range(len(alone))] == [*map(tokens, alone)]


def test_a_cancelled_request_leaves_the_others(engine, alone):
  [batch] = engine.start([some_requests()[3], some_requests()[0]])
  batch.advance(1)
  cancelled = batch.cancel(0)
  assert cancelled.completion.stop == 'cancelled'
  parts = []
  while not batch.done:
    parts += batch.advance(3)
  assert {part.number for part in parts} == {1}
  assert tokens(parts[-1].completion) == tokens(alone[0])


def test_tables_come_and_go(engine, places, alone):
  engine.add('c', places[1]['b'])
  prepared = engine.prepare(ask('Who?', passages=[], table='c', k=3))
  engine.remove('c')
  assert tokens(engine.answer([prepared])[0]) == tokens(alone[1])
  with pytest.raises(
    errors.UserError, match=r"table: .* 'c'; there are a, b, kv, refuse"
  ):
    engine.prepare(ask(table='c'))


def test_a_table_of_another_base(engine, places, tmp_path):
  tiny_models.save(tmp_path / 'base', seed=7)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  with pytest.raises(errors.UserError, match='another base'):
    engine.add('d', tmp_path / 'run')
  assert 'd' not in engine.tables


def test_a_bias_of_refusals(engine, places):
  """It decides how an answer begins, among other requests."""
  asked = ask(table='refuse')
  plain, *_ = engine.answer([asked])
  place, token = engine.tables['refuse'].tokens.refusal_token
  assert place == 0
  changes = (0.0, 100.0)
  requests = [dataclasses.replace(asked, refusal_bias=bias) for bias in changes]
  found = engine.answer([ask(), *requests, ask(table='b')])
  assert tokens(found[0]) == tokens(engine.answer([ask()])[0])
  assert tokens(found[1]) == tokens(plain)
  assert tokens(found[-1]) == tokens(engine.answer([ask(table='b')])[0])
  refused = found[2]
  assert refused.ids[0] == token
  assert token != plain.ids[0]
  # The margin, and so a bias that is just too little.
  likeliest, other = plain.log_probs[0], refused.log_probs[0]
  short = dataclasses.replace(asked, refusal_bias=likeliest - other - 0.01)
  enough = dataclasses.replace(asked, refusal_bias=likeliest - other + 0.01)
  less, more = engine.answer([short, enough])
  assert (tokens(less), tokens(more)) == (tokens(plain), tokens(refused))
  # Log-probabilities are the model's own, and the rest follows from the ids.
  assert refused.log_probs[0] < plain.log_probs[0]
  prepared = engine.prepare(asked)
  vocab = engine.base.config.vocab_size
  ids = [
    *prepared.example.prefix.tolist(),
    *prepared.example.before.tolist(),
    *range(vocab, vocab + prepared.example.num_active),
    *prepared.example.after.tolist(),
    token,
  ]
  rest = Request(
    prompt=ids, table='refuse', max_new_tokens=8, stop_at_newline=True
  )
  assert refused.ids[1:] == engine.answer([rest])[0].ids
  engine.add('eager', places[1]['refuse'], refusal_bias=100.0)
  asked = dataclasses.replace(asked, table='eager')
  eager, own = engine.answer(
    [asked, dataclasses.replace(asked, refusal_bias=0.0)]
  )
  engine.remove('eager')
  assert (tokens(eager), tokens(own)) == (tokens(refused), tokens(plain))


def test_a_bias_needs_virtual_tokens_that_refuse(engine, places):
  with pytest.raises(errors.UserError, match=r'refusal_bias=2: .*expected 0'):
    engine.add('d', places[1]['a'], refusal_bias=2)
  assert 'd' not in engine.tables
  with pytest.raises(errors.UserError, match=r'refusal_bias=-1: .*expected 0'):
    Engine.open(places[1]['kv'], refusal_bias=-1)
  with pytest.raises(errors.UserError, match='refusal_bias=nan: expected'):
    Engine.open(places[1]['refuse'], refusal_bias=float('nan'))


@pytest.mark.parametrize(('name', 'refuses'), [('a', False), ('refuse', True)])
def test_an_export_says_whether_it_refuses(places, tmp_path, name, refuses):
  directory = places[1][name]
  artifact.write(tmp_path, trained_table.read(str(directory)).table)
  for path in (directory, tmp_path):
    assert trained_source.read(path).refuses == refuses


@pytest.mark.parametrize('table', ['a', 'kv'])
def test_raw_ids_with_virtual_tokens(engine, table):
  """The ids of a prompt, as a program that serves an export makes them."""
  prepared = engine.prepare(ask(table=table, k=4))
  example, vocab = prepared.example, engine.base.config.vocab_size
  ids = [
    *example.prefix.tolist(),
    *range(vocab, vocab + 4),
    *example.after.tolist(),
  ]
  raw = Request(prompt=ids, table=table, max_new_tokens=9, stop_at_newline=True)
  one, other = engine.answer([raw, prepared])
  assert tokens(one) == tokens(other)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'question': None}, 'exactly one of question, messages and prompt'),
    ({'prompt': 'x'}, 'exactly one of question, messages and prompt'),
    ({'question': ' '}, 'question: expected a text that is not blank'),
    ({'k': 6}, 'k=6: expected a whole number from 1 to 5'),
    ({'table': None, 'condition': 'tokens'}, "condition='tokens'.*table"),
    ({'condition': 'none'}, "condition='none': expected one of closed_book"),
    ({'temperature': -1}, 'temperature=-1'),
    ({'temperature': float('nan')}, 'temperature=nan'),
    ({'top_p': 0}, 'top_p=0'),
    ({'stop': 'x'}, "stop='x': expected a list of texts"),
    ({'stop': ['']}, r'stop\[0\]: expected a text that is not empty'),
    ({'num_logprobs': 21}, 'num_logprobs=21: expected .* from 0 to 20'),
    ({'max_new_tokens': 0}, 'max_new_tokens=0'),
    ({'max_new_tokens': 100_000}, r'max_new_tokens=100,000 .* the base takes'),
    ({'passages': 'x'}, 'passages: expected a list'),
    ({'refusal_bias': 1}, 'refusal_bias=1: .* were not trained to refuse'),
    ({'refusal_bias': float('inf')}, 'refusal_bias=inf: expected a number'),
    ({'refusal_bias': -1e4, 'table': 'refuse'}, 'expected .* from -1000 to'),
    ({'refusal_bias': 1, 'table': None}, 'refusal_bias=1: .*name their table'),
    ({'question': 'x' * 300}, 'max_suffix_tokens=120'),
    ({'question': None, 'prompt': []}, 'prompt: expected at least one token'),
    ({'question': None, 'prompt': [10**6]}, r'prompt\[0\]=1000000'),
    ({'question': None, 'messages': [], 'table': None}, 'at least one message'),
    (
      {'question': None, 'messages': [{'role': 'user'}], 'table': None},
      r'messages\[0\]\["content"\]: expected a text, got None',
    ),
  ],
)
def test_bad_requests(engine, change, message):
  with pytest.raises(errors.UserError, match=message):
    engine.prepare(ask(**change))


def test_a_directory_with_nothing(tmp_path):
  with pytest.raises(errors.UserError, match='no finished run'):
    Engine.open(tmp_path)
