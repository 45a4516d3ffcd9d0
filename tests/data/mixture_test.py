"""What chance may decide, and how often."""

import collections
import dataclasses

import numpy as np
import pytest
import tiny_models

from vtokens import config
from vtokens.data import token_cache as tokens
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import REFUSAL, TrainingMixture
from vtokens.data.records import GOLD, Passage, Record
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import load_tokenizer

N = 300


def record(dataset: str, i: int) -> Record:
  """Six passages by each of two retrievers; the third is gold."""

  def ranked(name, count=6):
    return tuple(
      Passage(f'{name}{j}', '', f'{name} {j} {"word" if j % 2 else ""}')
      for j in range(count)
    )

  return Record(
    id=f'{dataset}{i}',
    dataset=dataset,
    question=f'question {i}',
    answers=('word', 'x' * 40),
    passages={
      'a': ranked('a'),
      'b': ranked('b', 2 if i % 2 else 0),
      GOLD: ranked('a')[2:3],
    },
  )


SIZES = {'big': N, 'middle': 30, 'small': 3}


@pytest.fixture(scope='module')
def assembler(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  tiny_models.save_tokenizer(directory)
  return Assembler.for_run(
    load_tokenizer(directory),
    config.Config(data=config.Data(max_answer_tokens=20)),
  )


@pytest.fixture(scope='module')
def source(assembler, tmp_path_factory):
  records = [record(name, i) for name, n in SIZES.items() for i in range(n)]
  directory = tmp_path_factory.mktemp('tokens')
  cache = tokens.TokenCache(directory, assembler.encoder, depth=6)
  return cache.open(iter(records), BadRecords(), identity={}, label='')


@pytest.fixture(scope='module')
def citing(assembler):
  templates = config.Templates(answer=' {answer} [{source}]')
  return Assembler.for_run(
    assembler.encoder.tokenizer,
    config.Config(templates=templates, data=config.Data(max_answer_tokens=24)),
  )


@pytest.fixture
def make(source, assembler):
  def make(
    removed=None,
    seed=0,
    tokens=None,
    passages=None,
    refuse=False,
    assembler=assembler,
    **mixture,
  ):
    cfg = config.Config(seed=seed)
    cfg.data.unanswerable = 'refuse' if refuse else 'skip'
    cfg.data.passages = passages or config.Passages()
    cfg.data.mixture = config.Mixture(**mixture)
    if tokens is not None:
      cfg.virtual_tokens = tokens
    if removed is None:
      removed = np.zeros(len(source), bool)
    return TrainingMixture([source], [{'removed': removed}], cfg, assembler)

  return make


def draws(mixture, dataset=0, epochs=20, count=100):
  return [
    mixture.draw(dataset, epoch, index)
    for epoch in range(epochs)
    for index in range(count)
  ]


def counts(values):
  return collections.Counter(values)


def retriever_of(passage, source):
  slots = source.slots(passage.member.index)
  return source.retrievers[slots.retriever[passage.slot]]


def test_draws_are_a_pure_function(make):
  policy = config.Passages(distractors=0.3, no_answer=0.2, none=0.1)
  a, b = make(passages=policy), make(passages=policy)
  assert draws(a) == draws(b)[:]
  assert draws(a) != draws(make(passages=policy, seed=1))
  assert len({a.draw(0, epoch, 5) for epoch in range(30)}) > 20
  # Calls in another order give the same.
  assert [a.draw(0, 3, i) for i in (9, 2, 9)] == [
    b.draw(0, 3, 9),
    b.draw(0, 3, 2),
    b.draw(0, 3, 9),
  ]


def test_numbers_answers_and_k_are_uniform(make):
  vt = config.VirtualTokens(num_virtual_tokens=5)
  mixture = make(
    tokens=vt, passages=config.Passages(number=(1, 3), retrievers=('a',))
  )
  found = draws(mixture, epochs=30)
  numbers = counts(len(d.passages) for d in found)
  assert set(numbers) == {1, 2, 3} and min(numbers.values()) > 900
  k = counts(d.num_active[0] for d in found)
  assert set(k) == {1, 2, 3, 4, 5} and min(k.values()) > 500
  # The other answer has more tokens than are allowed.
  assert {d.answer for d in found} == {0}
  ranks = counts(d.passages[0].rank for d in found)
  # Each of the first five is as often first as any other; the sixth is beyond
  # the depth.
  assert set(ranks) == {0, 1, 2, 3, 4} and min(ranks.values()) > 500
  for d in found:
    assert len({p.rank for p in d.passages}) == len(d.passages)


@pytest.mark.parametrize('exponent', [0.0, 0.5, 2.0])
def test_k_by_a_power_law(make, exponent):
  n = 6
  vt = config.VirtualTokens(
    num_virtual_tokens=n, draw='power', draw_exponent=exponent
  )
  drawn = counts(d.num_active[0] for d in draws(make(tokens=vt), epochs=100))
  assert set(drawn) == set(range(1, n + 1))
  total = sum(1 / k**exponent for k in range(1, n + 1))
  for k in range(1, n + 1):
    assert abs(drawn[k] / 10_000 - 1 / k**exponent / total) < 0.02


def test_a_fixed_k(make):
  vt = config.VirtualTokens(draw='fixed', num_active=7)
  assert {d.num_active for d in draws(make(tokens=vt), epochs=2)} == {(7,)}


def test_the_retriever_is_drawn_from_those_present(make, source):
  mixture = make(passages=config.Passages(number=(2, 2)))
  for index in range(20):
    names = counts(
      retriever_of(mixture.draw(0, e, index).passages[0], source)
      for e in range(60)
    )
    if index % 2:
      assert set(names) == {'a', 'b'} and min(names.values()) > 10
    else:
      assert set(names) == {'a'}
  for d in draws(mixture, epochs=2):
    assert len({retriever_of(p, source) for p in d.passages}) == 1


@pytest.mark.parametrize('name', ['b', GOLD])
def test_a_named_retriever_and_none_where_it_has_nothing(make, source, name):
  mixture = make(passages=config.Passages(retrievers=(name,), number=(1, 1)))
  for index in range(20):
    shown = mixture.draw(0, 0, index).passages
    assert [retriever_of(p, source) for p in shown] == (
      [name] if name == GOLD or index % 2 else []
    )


def test_order_by_rank_and_gold_last(make):
  number = {'number': (4, 4), 'retrievers': ('a',)}
  by_rank = make(passages=config.Passages(order='rank', **number))
  assert {
    tuple(p.rank for p in d.passages) for d in draws(by_rank, epochs=2)
  } == {(0, 1, 2, 3)}
  gold = make(passages=config.Passages(order='gold_last', **number))
  assert {tuple(p.rank for p in d.passages) for d in draws(gold, epochs=2)} == {
    (0, 1, 3, 2)
  }


def test_probabilities_of_no_passage_and_of_no_answer(make, source):
  policy = config.Passages(
    number=(2, 2), retrievers=('a',), none=0.2, no_answer=0.5
  )
  found = draws(make(passages=policy), epochs=30)
  empty = [d for d in found if not d.passages]
  assert abs(len(empty) / len(found) - 0.2) < 0.03
  # Ranks 1, 3 and 5 contain the answer.
  without = [
    d for d in found if d.passages and all(p.rank % 2 == 0 for p in d.passages)
  ]
  # Two of the ranks 0 to 4 are even by chance in 3 of 10 cases.
  share = len(without) / (len(found) - len(empty))
  assert abs(share - (0.5 + 0.5 * 0.3)) < 0.04


def test_distractors_are_of_other_questions_of_the_dataset(make, source):
  policy = config.Passages(number=(3, 3), retrievers=('a',), distractors=0.25)
  mixture = make(passages=policy)
  replaced = total = 0
  for dataset, count in ((0, 100), (1, 30)):
    for index in range(count):
      own = mixture.member(dataset, index)
      for p in mixture.draw(dataset, 0, index).passages:
        total += 1
        replaced += p.member != own
        name = source.datasets[source.dataset[p.member.index]]
        assert name == mixture.names[dataset]
  assert abs(replaced / total - 0.25) < 0.06


def targets(mixture, kept=None, count=100):
  """(passages shown, target) of examples."""
  found = []
  for index in range(count):
    draw = mixture.draw(0, 0, index)
    sizes = [1] * len(draw.passages) if kept is None else kept
    target = mixture.target(mixture.member(0, index), draw, sizes)
    found.append((draw, target))
  return found


def test_passages_without_the_answer_ask_for_the_refusal(make):
  policy = config.Passages(number=(1, 2), retrievers=('a',), none=0.2)
  seen = set()
  for draw, target in targets(make(passages=policy, refuse=True)):
    # Ranks 1, 3 and 5 contain the answer. Rank 2 is gold, which says nothing
    # where another passage contains the answer.
    holds = any(p.rank % 2 for p in draw.passages)
    seen.add((bool(draw.passages), holds))
    refused = draw.passages and not holds
    assert target == (REFUSAL if refused else draw.answer)
  assert len(seen) == 3
  # By default nothing is refused.
  for draw, target in targets(make(passages=policy)):
    assert target == draw.answer >= 0


def test_dropped_passages_and_distractors_hold_no_answer(make):
  policy = config.Passages(number=(2, 2), retrievers=('a',), order='rank')
  mixture = make(passages=policy, refuse=True)
  # Rank 1 has the answer, rank 0 does not.
  assert all(t == REFUSAL for _, t in targets(mixture, kept=[5, 0]))
  assert all(t == d.answer for d, t in targets(mixture, kept=[5, 5]))
  policy = config.Passages(
    number=(2, 2), retrievers=('a',), order='rank', distractors=1.0
  )
  mixture = make(passages=policy, refuse=True)
  assert all(t == REFUSAL for _, t in targets(mixture))


def test_the_ids_of_the_refusal(make, assembler):
  mixture = make(refuse=True)
  member = mixture.member(0, 0)
  ids = mixture.answer(member, REFUSAL)
  [expected] = assembler.encoder.answers(["I don't know."], chat=False)
  assert ids.tolist() == expected.tolist()
  assert mixture.answer_len(member, REFUSAL) == len(expected)


def test_the_source_is_the_first_shown_passage_with_the_answer(make, citing):
  policy = config.Passages(number=(1, 3), retrievers=('a',))
  mixture = make(passages=policy, assembler=citing)
  seen = set()
  for draw, _ in targets(mixture):
    member = draw.passages[0].member
    # Ranks 1, 3 and 5 contain the answer, rank 2 is gold.
    holds = [p.rank in (1, 2, 3, 5) for p in draw.passages]
    for kept in ([9] * len(holds), [0, *[9] * (len(holds) - 1)]):
      left = [h for h, n in zip(holds, kept, strict=True) if n]
      expected = left.index(True) + 1 if any(left) else 0
      assert mixture.source(member, draw, kept) == expected
      seen.add(expected)
    refused = dataclasses.replace(draw, answer=REFUSAL)
    assert mixture.source(member, refused, [9] * len(holds)) == 0
  assert seen == {0, 1, 2, 3}
  # By default nothing is cited.
  draw = make(passages=policy).draw(0, 0, 0)
  assert make().source(mixture.member(0, 0), draw, [9] * 3) == 0


def test_a_distractor_is_no_source(make, citing):
  policy = config.Passages(number=(3, 3), retrievers=('a',), distractors=1.0)
  mixture = make(passages=policy, assembler=citing)
  for index in range(20):
    draw = mixture.draw(0, 0, index)
    assert mixture.source(mixture.member(0, index), draw, [9] * 3) == 0


def order(mixture, count):
  stream = mixture.order()
  return [stream[i] for i in range(count)]


def test_by_size_each_example_comes_once_in_an_epoch(make):
  mixture = make()
  total = sum(SIZES.values())
  assert mixture.names == sorted(SIZES)
  assert mixture.sizes == [SIZES[name] for name in mixture.names]
  places = order(mixture, 3 * total)
  for number, name in enumerate(mixture.names):
    own = [(e, i) for d, e, i in places if d == number]
    assert abs(len(own) - 3 * SIZES[name]) <= 1
    assert len(set(own)) == len(own)
    for epoch in range(2):
      assert sorted(i for e, i in own if e == epoch) == list(range(SIZES[name]))
  first = [i for d, e, i in places if d == 0 and e == 0]
  second = [i for d, e, i in places if d == 0 and e == 1]
  assert first != second != sorted(second)


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'weighting': 'temperature', 'temperature': 1.0}, SIZES),
    (
      {'weighting': 'temperature', 'temperature': 2.0},
      {name: n**0.5 for name, n in SIZES.items()},
    ),
    (
      {'weighting': 'weights', 'weights': {'big': 1, 'middle': 2, 'small': 5}},
      {'big': 1, 'middle': 2, 'small': 5},
    ),
  ],
)
def test_weights(make, settings, expected):
  mixture = make(**settings)
  found = counts(mixture.names[d] for d, _, _ in order(mixture, 800))
  for name, share in expected.items():
    assert abs(found[name] - 800 * share / sum(expected.values())) <= 2


def test_caps_choose_at_random_and_by_seed(make):
  a = make(max_examples={'big': 40, 'middle': 99})
  assert dict(zip(a.names, a.sizes, strict=True)) == {**SIZES, 'big': 40}
  ids = [a.id(a.member(0, i)) for i in range(40)]
  assert ids != [f'big{i}' for i in range(40)] and len(set(ids)) == 40
  again = make(max_examples={'big': 40})
  assert ids == [again.id(again.member(0, i)) for i in range(40)]
  other = make(max_examples={'big': 40}, seed=1)
  assert ids != [other.id(other.member(0, i)) for i in range(40)]


def test_removed_examples_never_come(make, source):
  removed = np.arange(len(source)) % 2 == 0
  mixture = make(removed)
  kept = {mixture.id(mixture.member(d, i)) for d, _, i in order(mixture, 1000)}
  assert kept == {source.id(i) for i in np.flatnonzero(~removed)}
  with pytest.raises(errors.UserError, match='no training example is left'):
    make(np.ones(len(source), bool))


def test_a_policy_of_one_dataset(source, assembler):
  cfg = config.Config()
  cfg.data.mixture.passages['small'] = config.Passages(number=(0, 0))
  nothing = {'removed': np.zeros(len(source), bool)}
  mixture = TrainingMixture([source], [nothing], cfg, assembler)
  for number, name in enumerate(mixture.names):
    shown = [mixture.draw(number, 0, i).passages for i in range(3)]
    assert all(map(bool, shown)) == (name != 'small')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'max_examples': {'bigg': 3}},
      "no training data of 'bigg'",
    ),
    (
      {'weighting': 'weights', 'weights': {'big': 1.0, 'small': 1.0}},
      "weights: no weight for 'middle'",
    ),
  ],
)
def test_names_that_do_not_fit(make, settings, message):
  with pytest.raises(errors.UserError, match=message):
    make(**settings)
