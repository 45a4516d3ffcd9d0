"""Batches as a function of (seed, step), and what chance may decide."""

import collections
import itertools

import jax
import numpy as np
import pytest
import tiny_models

from vtokens import config, errors
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage, Record
from vtokens.models.tokenizer import load_tokenizer

V = 1000


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  tiny_models.save_tokenizer(directory)
  return load_tokenizer(directory)


def make_record(i: int, passages: int = 3) -> Record:
  return Record(
    id=f'r{i}',
    dataset='d',
    question=f'question {i}' + '?' * (i % 7),
    answers=tuple(f'answer {i} {j}' for j in range(1 + i % 3)),
    passages=tuple(
      Passage(id='', title='', text=f'passage {j} ' + 'x' * (3 * i % 40))
      for j in range(passages)
    ),
  )


RECORDS = [make_record(i) for i in range(23)]
DATA = config.Data(
  num_passages=(1, 3),
  batch_size=4,
  buckets=((80, 60), (160, 60), (240, 80)),
  max_answer_tokens=24,
  window_batches=3,
)


def train_batches(tokenizer, data=DATA, draw='uniform', seed=0, n=8):
  cfg = config.Config(data=data)
  tokens = config.VirtualTokens(
    num_virtual_tokens=n, draw=draw, num_active=min(5, n)
  )
  assembler = Assembler.for_run(tokenizer, cfg)
  return pipeline.TrainBatches(RECORDS, data, tokens, assembler, V, seed)


def take(batches, start, count):
  with batches.starting_at(start) as stream:
    return list(itertools.islice(stream, count))


def assert_equal(a: pipeline.HostBatch, b: pipeline.HostBatch):
  assert a.ids == b.ids
  jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)


def active(host: pipeline.HostBatch) -> list[int]:
  return (host.batch.suffix >= V).sum(axis=1).tolist()


@pytest.mark.parametrize('draw', ['uniform', 'per_batch', 'fixed'])
def test_a_batch_depends_only_on_seed_and_step(tokenizer, draw):
  reference = take(train_batches(tokenizer, draw=draw), 0, 20)
  for start in (0, 1, 2, 3, 7, 11, 19):
    again = take(train_batches(tokenizer, draw=draw), start, 20 - start)
    for a, b in zip(reference[start:], again, strict=True):
      assert_equal(a, b)
  other = take(train_batches(tokenizer, draw=draw, seed=1), 0, 20)
  assert [b.ids for b in other] != [b.ids for b in reference]


def test_each_epoch_shows_every_record_once(tokenizer):
  hosts = take(train_batches(tokenizer), 0, 3 * 23)
  # 12 windows of 12 positions: 276 = 12 epochs of 23 records.
  names = [name for host in hosts for name in host.ids]
  assert set(collections.Counter(names).values()) == {12}


def test_epochs_differ_in_order_and_draws(tokenizer):
  record = RECORDS[5]
  draws = {
    pipeline.draw(record, DATA, config.VirtualTokens(), 0, epoch, 5)
    for epoch in range(10)
  }
  assert len(draws) > 5


def test_draws_cover_what_they_should_and_are_uniform():
  record = make_record(2, passages=4)
  data = config.Data(num_passages=(1, 3))
  tokens = config.VirtualTokens(num_virtual_tokens=5)
  draws = [
    pipeline.draw(record, data, tokens, 0, 0, index) for index in range(3000)
  ]

  def counts(values):
    return collections.Counter(values)

  numbers = counts(len(d.passages) for d in draws)
  assert set(numbers) == {1, 2, 3}
  assert min(numbers.values()) > 900
  k = counts(d.num_active for d in draws)
  assert set(k) == {1, 2, 3, 4, 5}
  assert min(k.values()) > 500
  assert set(counts(d.answer for d in draws)) == set(record.answers)
  # Each passage is as often first as any other: rank does not tell.
  first = counts(d.passages[0][0] for d in draws)
  assert set(first) == {0, 1, 2, 3}
  assert min(first.values()) > 650
  for d in draws[:50]:
    assert all(record.passages[rank] == p for rank, p in d.passages)
    assert len({rank for rank, _ in d.passages}) == len(d.passages)


@pytest.mark.parametrize('exponent', [0.0, 0.5, 2.0])
def test_k_by_a_power_law(exponent):
  n, count = 6, 20_000
  tokens = config.VirtualTokens(
    num_virtual_tokens=n, draw='power', draw_exponent=exponent
  )
  data = config.Data()
  record = make_record(0)
  drawn = collections.Counter(
    pipeline.draw(record, data, tokens, 0, 0, i).num_active
    for i in range(count)
  )
  assert set(drawn) == set(range(1, n + 1))
  total = sum(1 / k**exponent for k in range(1, n + 1))
  for k in range(1, n + 1):
    assert abs(drawn[k] / count - 1 / k**exponent / total) < 0.015


def test_without_shuffling_the_top_passages_in_rank_order():
  data = config.Data(num_passages=(2, 2), shuffle_passages=False)
  drawn = pipeline.draw(
    make_record(0, passages=4), data, config.VirtualTokens(), 0, 0, 0
  )
  assert [rank for rank, _ in drawn.passages] == [0, 1]


def test_fewer_passages_than_asked_for():
  data = config.Data(num_passages=(5, 5))
  for count in (0, 2):
    drawn = pipeline.draw(
      make_record(0, passages=count), data, config.VirtualTokens(), 0, 0, 0
    )
    assert len(drawn.passages) == count


def test_how_k_is_drawn(tokenizer):
  uniform = take(train_batches(tokenizer), 0, 12)
  assert any(len(set(active(host))) > 1 for host in uniform)
  per_batch = take(train_batches(tokenizer, draw='per_batch'), 0, 12)
  assert all(len(set(active(host))) == 1 for host in per_batch)
  assert len({active(host)[0] for host in per_batch}) > 3
  fixed = take(train_batches(tokenizer, draw='fixed'), 0, 12)
  assert {k for host in fixed for k in active(host)} == {5}


def test_rows_say_what_the_records_say(tokenizer):
  by_id = {record.id: record for record in RECORDS}
  for host in take(train_batches(tokenizer), 0, 6):
    batch = host.batch
    for row, name in enumerate(host.ids):
      record = by_id[name]
      prefix = batch.prefix[row, : batch.prefix_len[row]]
      assert '[1] passage' in tokenizer.decode(prefix)
      ids = batch.suffix[row, : batch.suffix_len[row]].tolist()
      k = active(host)[row]
      assert ids[:k] == list(range(V, V + k))
      targets = batch.targets[row, : batch.target_len[row]].tolist()
      assert targets[-1] == tokenizer.eos_id
      answer = tokenizer.decode(targets[:-1])
      assert answer.strip() in record.answers
      assert tokenizer.decode(ids[k:]) == (
        f'Question: {record.question}\nAnswer:{answer}'
      )
      # From here on, each token of the suffix predicts the next target.
      start = batch.answer_start[row]
      assert tokenizer.decode(ids[k : start + 1]).endswith('Answer:')
      assert ids[start + 1 :] == targets[:-1]


def test_shapes_are_those_of_the_buckets(tokenizer):
  for host in take(train_batches(tokenizer), 0, 30):
    batch = host.batch
    bucket = (batch.prefix.shape[1], batch.suffix.shape[1])
    assert bucket in DATA.buckets
    smaller = DATA.buckets[: DATA.buckets.index(bucket)]
    # No earlier bucket would have done.
    assert all(
      batch.prefix_len.max() > p or batch.suffix_len.max() > s
      for p, s in smaller
    )


def test_windows_sort_by_length(tokenizer):
  hosts = take(train_batches(tokenizer), 0, 30)
  spread = [np.ptp(host.batch.prefix_len) for host in hosts]
  all_lengths = np.concatenate([host.batch.prefix_len for host in hosts])
  assert np.mean(spread) < 0.6 * np.ptp(all_lengths)


def test_pick_bucket_says_what_does_not_fit(tokenizer):
  example = Assembler(tokenizer, config.Templates(), 500, 500, 50)(
    (), 'q' * 100
  )
  with pytest.raises(errors.UserError, match='suffix of 118'):
    pipeline.pick_bucket(((16, 64),), [example])


def test_check_fits_names_the_record(tokenizer):
  cfg = config.Config(data=DATA)
  assembler = Assembler.for_run(tokenizer, cfg)
  pipeline.check_fits(RECORDS, assembler, 8)
  bad = Record('bad', 'd', 'q', ('fine', 'x' * 60), ())
  with pytest.raises(errors.UserError, match='record bad: the answer'):
    pipeline.check_fits([*RECORDS, bad], assembler, 8)


def test_shown_passages_do_not_depend_on_their_company():
  record = make_record(1, passages=5)
  shown = pipeline.shown_passages(record, 3, True, 0)
  assert sorted(rank for rank, _ in shown) == [0, 1, 2]
  assert shown == pipeline.shown_passages(record, 3, True, 0)
  orders = {
    tuple(r for r, _ in pipeline.shown_passages(make_record(i, 5), 3, True, 0))
    for i in range(40)
  }
  assert len(orders) == 6
  by_rank = pipeline.shown_passages(record, 3, False, 0)
  assert [rank for rank, _ in by_rank] == [0, 1, 2]
