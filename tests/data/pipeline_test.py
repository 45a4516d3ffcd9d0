"""Batches as a function of (seed, step), whoever makes them."""

import collections
import dataclasses
import gzip
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest
import tiny_models
from absl import flags

from vtokens import config
from vtokens.data import pipeline, teaching, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.records import GOLD, Passage, Record, RecordError
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import load_tokenizer

V = 1000


def row(i: int) -> dict:
  return {
    'id': f'r{i}',
    'dataset': 'ab'[i % 2],
    'question': f'question {i}' + '?' * (i % 7),
    'answers': [f'answer {i} {j}' for j in range(1 + i % 3)],
    'passages': [
      {'text': f'passage {j} ' + 'x' * (3 * i % 40)} for j in range(3)
    ],
  }


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pipeline')
  tiny_models.save_tokenizer(directory / 'tokenizer')
  lines = [json.dumps(row(i)) + '\n' for i in range(23)]
  (directory / 'train.jsonl').write_text(''.join(lines))
  return directory


@pytest.fixture
def make(directory):
  tokenizer = load_tokenizer(directory / 'tokenizer')

  def make(
    local_rows=None,
    seed=0,
    draw='uniform',
    position='middle',
    chat=False,
    draws=1,
    always_all=False,
    distill=None,
    teacher=None,
    **data,
  ):
    cfg = config.Config(
      seed=seed,
      virtual_tokens=config.VirtualTokens(
        num_virtual_tokens=8,
        draw=draw,
        num_active=5,
        position=position,
        draws_per_example=draws,
        always_all=always_all,
      ),
      templates=config.Templates(chat=chat),
      data=config.Data(
        **{
          'train': (str(directory / 'train.jsonl'),),
          'passages': config.Passages(number=(1, 3)),
          'batch_size': 4,
          'max_prefix_tokens': 160,
          'max_suffix_tokens': 80,
          'max_answer_tokens': 24,
          'window_batches': 3,
          'token_cache': str(directory / 'cache'),
          **data,
        }
      ),
    )
    assembler = Assembler.for_run(tokenizer, cfg)
    mixture, left_out = training_set.open_training_set(
      cfg, assembler, [], lambda text: None
    )
    assert not left_out
    return pipeline.TrainBatches(
      mixture,
      cfg.data,
      cfg.virtual_tokens,
      assembler,
      V,
      cfg.seed,
      local_rows,
      distill,
      teacher,
    )

  return make


def take(batches, start, count):
  with batches.starting_at(start) as stream:
    return list(itertools.islice(stream, count))


def assert_equal(a: pipeline.HostBatch, b: pipeline.HostBatch):
  assert a.ids == b.ids
  assert jax.tree.structure(a.batch) == jax.tree.structure(b.batch)
  jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)
  assert dataclasses.replace(a, batch=None) == dataclasses.replace(
    b, batch=None
  )


@pytest.mark.parametrize('per_row', [1, 2])
@pytest.mark.parametrize('draw', ['uniform', 'per_batch', 'fixed'])
def test_a_batch_depends_only_on_seed_and_step(make, draw, per_row):
  def batches(**settings):
    return make(draw=draw, examples_per_row=per_row, **settings)

  # 23 records, 4 to a batch: over three ends of epochs.
  reference = take(batches(), 0, 20)
  for start in (0, 1, 2, 3, 7, 11, 19):
    again = take(batches(), start, 20 - start)
    for a, b in zip(reference[start:], again, strict=True):
      assert_equal(a, b)
  other = take(batches(seed=1), 0, 20)
  assert [b.ids for b in other] != [b.ids for b in reference]


def test_more_draws_change_nothing_else(make):
  """The same examples, passages and answers, whose first k is the same."""
  one = make(draw='uniform').mixture
  three = make(draw='uniform', draws=3).mixture
  drawn = set()
  for place in itertools.product([0, 1], [0, 1], range(11)):
    a, b = one.draw(*place), three.draw(*place)
    assert (a.passages, a.answer) == (b.passages, b.answer)
    assert a.num_active == b.num_active[:1]
    assert len(b.num_active) == 3
    drawn.update(b.num_active[1:])
  assert drawn == set(range(1, 9))


def test_the_last_draw_has_all_tokens(make):
  """And nothing else changes."""
  one = make(draw='uniform', draws=3).mixture
  two = make(draw='uniform', draws=3, always_all=True).mixture
  for place in itertools.product([0, 1], [0, 1], range(11)):
    a, b = one.draw(*place), two.draw(*place)
    assert (a.passages, a.answer) == (b.passages, b.answer)
    assert b.num_active == (*a.num_active[:-1], 8)


@pytest.mark.parametrize('per_row', [1, 2])
@pytest.mark.parametrize('draw', ['uniform', 'per_batch'])
def test_targets_of_the_last_draw_teach_the_others(make, draw, per_row):
  """Each target learns from the same one of the draw with all 8 tokens."""
  settings = {'draw': draw, 'draws': 3, 'examples_per_row': per_row}
  settings['always_all'] = True
  distill = config.Distill(weight=0.5)
  untaught = take(make(**settings), 0, 4)
  for host, plain in zip(
    take(make(**settings, distill=distill), 0, 4), untaught, strict=True
  ):
    batch = host.batch
    assert_equal(
      dataclasses.replace(
        host, batch=dataclasses.replace(batch, teacher_index=None)
      ),
      plain,
    )
    for r in range(4 // per_row):
      [at] = np.nonzero(batch.target_index[r] >= 0)
      taught = [t for t in at if batch.teacher_index[r, t] >= 0]
      assert len(taught) == 2 * len(at) // 3
      assert (np.delete(batch.teacher_index[r], taught) == -1).all()
      segments = batch.suffix_segments[r]
      for t in taught:
        teacher = batch.teacher_index[r, t]
        assert batch.targets[r, t] == batch.targets[r, teacher]
        places = batch.target_index[r, [t, teacher]]
        student, last = segments[places]
        assert student // 3 == last // 3
        assert last % 3 == 2
        assert (batch.suffix[r][segments == last] >= V).sum() == 8
        # As far from the end of the suffix.
        ends = [np.flatnonzero(segments == s)[-1] for s in (student, last)]
        assert ends[0] - places[0] == ends[1] - places[1]


@pytest.fixture(scope='module')
def with_gold(directory):
  """Of 4 of 5 records, passage 1 has the answer; of the others none."""
  rows = [row(i) | {'answers': ['passage 1']} for i in range(20)]
  for i in range(0, 20, 5):
    rows[i]['answers'] = ['something else']
  path = directory / 'gold.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return {'train': (str(path),)}


@pytest.mark.parametrize(
  'per_row, position, draws, text',
  [(1, 'middle', 1, []), (2, 'middle', 2, []), (2, 'first', 1, [7, 9])],
)
def test_a_teacher_sees_gold_passages_alone(
  make, with_gold, per_row, position, draws, text
):
  settings = {'examples_per_row': per_row, 'position': position} | with_gold
  # Nothing is cut.
  settings |= {'draws': draws, 'max_prefix_tokens': 250}
  distill = config.Distill(weight=0.5, passages='gold')
  seen = teaching.Teacher(True, 0 if text else 8, np.asarray(text, np.int32))
  batches = make(distill=distill, teacher=seen, **settings)
  plain = make(**settings)
  encoder = batches.encoder
  assert 1 <= len(batches.teacher_shapes) <= 3
  taught = 0
  for host, untaught in zip(
    take(batches, 0, 10), take(plain, 0, 10), strict=True
  ):
    batch, teacher = host.batch, host.batch.teacher
    alone = dataclasses.replace(batch, teacher=None, teacher_index=None)
    jax.tree.map(np.testing.assert_array_equal, alone, untaught.batch)
    lengths = []
    for r in range(4 // per_row):
      of_teacher = list(examples_of(teacher, r))
      for prefix, suffix, targets in examples_of(batch, r):
        ids = [*batch.prefix[r][prefix], *batch.suffix[r][suffix]]
        shown = encoder.tokenizer.decode([i for i in ids if i < V])
        index = batch.teacher_index[r][targets]
        answer = encoder.tokenizer.decode(batch.targets[r][targets].tolist())
        if 'passage 1' not in answer or '] passage 1' not in shown:
          assert (index == -1).all()
          continue
        taught += 1
        # The teacher's targets are the same ones, in order.
        assert index.tolist() == list(range(index[0], index[0] + len(index)))
        np.testing.assert_array_equal(
          teacher.targets[r][index], batch.targets[r][targets]
        )
        [(of_prefix, of_suffix, own)] = [
          parts for parts in of_teacher if index[0] in parts[2]
        ]
        assert own.tolist() == index.tolist()
        seen_ids = [
          *teacher.prefix[r][of_prefix],
          *teacher.suffix[r][of_suffix],
        ]
        tokens = text or list(range(V, V + 8))
        [at] = [
          i
          for i in range(len(seen_ids))
          if seen_ids[i:][: len(tokens)] == tokens
        ]
        words = encoder.tokenizer.decode(
          seen_ids[:at] + seen_ids[at + len(tokens) :]
        )
        assert '[1] passage 1' in words
        assert '[2]' not in words
        assert 'Question: question' in words
        lengths.append((len(of_prefix), len(of_prefix), len(of_suffix)))
    found = [one[:3] for one in host.teacher_lengths]
    assert sorted(found * draws) == sorted(lengths)
    assert host.computed_tokens == sum(
      x.size for one in (batch, teacher) for x in (one.prefix, one.suffix)
    )
  assert taught > 10


@pytest.mark.parametrize('per_row', [1, 2])
def test_a_teacher_may_see_what_the_student_sees(make, with_gold, per_row):
  """Then the prefix is not there twice."""
  seen = teaching.Teacher(False, 11)
  batches = make(
    distill=config.Distill(weight=0.5, tokens='run'),
    teacher=seen,
    examples_per_row=per_row,
    draws=2,
    **with_gold,
  )
  for host in take(batches, 0, 3):
    batch, teacher = host.batch, host.batch.teacher
    assert teacher.prefix.shape == (4 // per_row, 0)
    assert (batch.teacher_index >= 0).sum() == (batch.target_index >= 0).sum()
    assert [run for run, *_ in host.teacher_lengths] == [0] * 4
    for r in range(4 // per_row):
      numbers = np.unique(batch.prefix_segments[r]) if per_row > 1 else [0]
      for number in set(numbers) - {-1}:
        of_teacher = teacher.suffix_positions[r] >= 0
        of_prefix = batch.prefix_positions[r] >= 0
        if per_row > 1:
          of_teacher &= teacher.suffix_segments[r] == number
          of_prefix &= batch.prefix_segments[r] == number
        # Its positions go on from the prefix of the same number.
        assert teacher.suffix_positions[r][of_teacher][0] == of_prefix.sum()
        assert (teacher.suffix[r][of_teacher] >= V).sum() == 11


def test_a_teacher_of_data_without_gold_is_refused(make):
  with pytest.raises(errors.UserError, match=r'distill\.passages: none of the'):
    make(teacher=teaching.Teacher(True, 8))


@pytest.mark.parametrize(
  'processes, position',
  [(2, 'middle'), (4, 'middle'), (4, 'first'), (4, 'last')],
)
@pytest.mark.parametrize('per_row', [1, 2])
def test_processes_make_the_rows_of_one_global_batch(
  make, processes, per_row, position
):
  settings = {
    'batch_size': 8,
    'examples_per_row': per_row,
    'position': position,
  }
  whole = take(make(**settings), 0, 10)
  rows = 8 // per_row
  parts = [
    take(
      make(
        np.arange(rows)[p * rows // processes : (p + 1) * rows // processes],
        **settings,
      ),
      0,
      10,
    )
    for p in range(processes)
  ]
  for step, host in enumerate(whole):
    pieces = [part[step] for part in parts]
    joined = jax.tree.map(
      lambda *x: np.concatenate(x), *(piece.batch for piece in pieces)
    )
    for piece in pieces:
      assert_equal(dataclasses.replace(piece, batch=joined), host)


@pytest.mark.slow
@pytest.mark.parametrize(
  'start', [pytest.param(0, marks=pytest.mark.exhaustive), 4]
)
def test_worker_processes_make_the_same(make, start):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  settings = {'batch_size': 8, 'examples_per_row': 2}
  expected = take(make(**settings), start, 8)
  found = take(make(workers=2, **settings), start, 8)
  for a, b in zip(expected, found, strict=True):
    assert_equal(a, b)


def test_each_epoch_shows_every_record_once(make):
  names = [name for host in take(make(), 0, 3 * 23) for name in host.ids]
  # 12 windows of 12 positions: 276 = 12 epochs of 23 records.
  found = collections.Counter(names)
  assert len(found) == 23
  # Two data sets are mixed by weight, so an epoch of one may end a step late.
  assert set(found.values()) <= {11, 12, 13}


def examples_of(batch, r):
  """Slots of prefix, suffix and targets of each of a row's suffixes."""

  def own(name, number):
    real = getattr(batch, f'{name}_positions')[r] >= 0
    segments = getattr(batch, f'{name}_segments')
    if segments is not None:
      real &= segments[r] == number
    return np.flatnonzero(real)

  segments, parents = batch.suffix_segments, batch.suffix_parents
  for number in [0] if segments is None else range(segments[r].max() + 1):
    suffix = own('suffix', number)
    parent = number
    if parents is not None:
      [parent] = set(parents[r][suffix].tolist())
    prefix = own('prefix', parent)
    targets = np.flatnonzero(np.isin(batch.target_index[r], suffix))
    yield prefix, suffix, targets


@pytest.mark.parametrize('draws', [1, 3])
@pytest.mark.parametrize('per_row', [1, 2])
@pytest.mark.parametrize('draw', ['uniform', 'per_batch'])
def test_what_is_in_a_batch(make, directory, per_row, draws, draw):
  batches = make(examples_per_row=per_row, draw=draw, draws=draws)
  encoder = batches.encoder
  by_id = {f'r{i}': row(i) for i in range(23)}
  drawn = set()
  for host in take(batches, 0, 12):
    batch = host.batch
    names = itertools.chain.from_iterable(
      itertools.repeat(name, draws) for name in host.ids
    )
    prefixes = set()
    real = 0
    counts = set()
    for r in range(len(batch.prefix)):
      for prefix, suffix, targets in examples_of(batch, r):
        record = by_id[next(names)]
        # Positions go on from prefix to suffix.
        assert batch.prefix_positions[r][prefix].tolist() == list(
          range(len(prefix))
        )
        assert batch.suffix_positions[r][suffix].tolist() == list(
          range(len(prefix), len(prefix) + len(suffix))
        )
        # The prefix is there once for all its suffixes.
        if (r, prefix[0]) not in prefixes:
          real += len(prefix)
        prefixes.add((r, prefix[0]))
        real += len(suffix)
        ids = batch.suffix[r][suffix].tolist()
        k = sum(i >= V for i in ids)
        drawn.add(k)
        assert ids[:k] == list(range(V, V + k))
        prompt = encoder.prompt(record['question'], name='prompt', chat=False)
        assert ids[k : k + len(prompt)] == prompt.tolist()
        answers = [
          a.tolist() for a in encoder.answers(record['answers'], chat=False)
        ]
        found = batch.targets[r][targets].tolist()
        assert found in answers
        assert ids[k + len(prompt) :] == found[:-1]
        # The token that predicts a target comes just before it.
        first = batch.target_index[r][targets] - suffix[0]
        assert first.tolist() == list(
          range(k + len(prompt) - 1, k + len(prompt) - 1 + len(found))
        )
        text = encoder.tokenizer.decode(batch.prefix[r][prefix].tolist())
        shown = [p['text'] for p in record['passages'] if p['text'] in text]
        assert shown and text.startswith('[1] ') and text.endswith('\n\n')
        assert f'[{len(shown)}] ' in text
        counts.add(k)
    assert next(names, None) is None
    assert len(prefixes) == len(host.ids) == 4
    if draw == 'per_batch':
      assert len(counts) <= draws
    assert host.real_tokens == real
    assert len(host.lengths) == 4 * draws
    assert sum(run + suffix for run, _, suffix, _ in host.lengths) == real
    assert host.computed_tokens == batch.prefix.size + batch.suffix.size
  if draw == 'uniform':
    assert len(drawn) == 8


@pytest.mark.parametrize('per_row', [1, 2])
@pytest.mark.parametrize('chat', [False, True])
def test_the_position_changes_only_where_virtual_tokens_stand(
  make, directory, per_row, chat
):
  """Over whole windows: into which batch an example comes, it may change."""
  settings = {
    'examples_per_row': per_row,
    'chat': chat,
    'token_cache': str(directory / f'cache_{per_row}_{chat}'),
    'max_prefix_tokens': 100,
    'max_suffix_tokens': 120,
  }
  found = {}
  for position in ('first', 'middle', 'last'):
    batches = make(position=position, **settings)
    encoder = batches.encoder
    start, end = encoder.before(chat).tolist(), encoder.turn_end(chat).tolist()
    examples = []
    for host in take(batches, 0, 12):
      batch = host.batch
      names = iter(host.ids)
      real = (batch.prefix_positions >= 0).sum()
      assert host.real_tokens == real + (batch.suffix_positions >= 0).sum()
      for r in range(len(batch.prefix)):
        for prefix, suffix, targets in examples_of(batch, r):
          at = np.concatenate(
            [
              batch.prefix_positions[r][prefix],
              batch.suffix_positions[r][suffix],
            ]
          )
          assert at.tolist() == list(range(len(at)))
          head = batch.prefix[r][prefix].tolist()
          ids = batch.suffix[r][suffix].tolist()
          answer = batch.targets[r][targets].tolist()
          text = len(ids) - len(answer) + 1
          assert ids[text:] == answer[:-1]
          # Each target is predicted by the token before it.
          index = batch.target_index[r][targets] - suffix[0]
          assert index.tolist() == list(range(text - 1, len(ids)))
          virtual = [i for i in ids if i >= V]
          assert virtual == list(range(V, V + len(virtual)))
          first = ids.index(V)
          after = ids[first + len(virtual) : text]
          if position == 'first':
            assert (head, first) == (start, 0)
          elif position == 'middle':
            assert first == 0 and len(head) > len(start)
          else:
            assert after == end and len(head) > len(start)
          whole = [*head, *(i for i in ids[:text] if i < V)]
          examples.append((next(names), len(virtual), whole, answer))
    found[position] = sorted(examples)
  assert found['first'] == found['middle'] == found['last']
  assert len(found['first']) == 48
  # What is tokenised is the same.
  assert (
    len(list((directory / f'cache_{per_row}_{chat}').glob('*/meta.json'))) == 1
  )


def test_one_k_for_a_whole_batch(make):
  drawn = set()
  for host in take(make(draw='per_batch', examples_per_row=2), 0, 30):
    per_example = [
      int((host.batch.suffix[r][suffix] >= V).sum())
      for r in range(len(host.batch.suffix))
      for _, suffix, _ in examples_of(host.batch, r)
    ]
    assert len(set(per_example)) == 1
    drawn |= set(per_example)
    real = (host.batch.prefix_positions >= 0).sum() + (
      host.batch.suffix_positions >= 0
    ).sum()
    assert host.real_tokens == real
  assert len(drawn) > 5


def test_shapes_are_few_and_rows_alike(make):
  batches = make(examples_per_row=2, batch_size=8, window_batches=6)
  assert len(batches.shapes) <= 6
  assert batches.shapes[-1] == (320, 160)
  hosts = take(batches, 0, 30)
  used = {(h.batch.prefix.shape[1], h.batch.suffix.shape[1]) for h in hosts}
  assert used <= set(batches.shapes)
  share = sum(h.real_tokens for h in hosts) / sum(
    h.computed_tokens for h in hosts
  )
  alone = take(make(batch_size=8, window_batches=6, num_shapes=1), 0, 30)
  assert share > 1.5 * sum(h.real_tokens for h in alone) / sum(
    h.computed_tokens for h in alone
  )


@pytest.mark.parametrize('chat', [False, True])
def test_shapes_with_the_tokens_first(make, chat):
  settings = {
    'position': 'first',
    'chat': chat,
    'batch_size': 8,
    'max_suffix_tokens': 100,
    'window_batches': 6,
  }
  batches = make(examples_per_row=2, **settings)
  assert 2 < len(batches.shapes) <= 6
  # Without bos the prefix is empty: one slot of padding.
  start = 2 * len('s' + 'user\n') if chat else 1
  assert {prefix for prefix, _ in batches.shapes} == {start}
  assert batches.shapes[-1] == (start, 2 * (160 + 100))
  hosts = take(batches, 0, 30)
  for host in hosts:
    assert ((host.batch.prefix_positions >= 0) == chat).all()
  used = {(h.batch.prefix.shape[1], h.batch.suffix.shape[1]) for h in hosts}
  assert used <= set(batches.shapes) and len(used) > 2

  def share(hosts):
    real = sum(host.real_tokens for host in hosts)
    return real / sum(host.computed_tokens for host in hosts)

  # As with the tokens in the middle.
  assert share(hosts) > 0.75
  alone = take(make(num_shapes=1, **settings), 0, 30)
  assert share(hosts) > 1.5 * share(alone)


def test_shapes_of_the_config_that_cannot_hold_the_start(make):
  settings = {'position': 'first', 'chat': True, 'max_suffix_tokens': 100}
  make(shapes=((6, 260),), **settings)
  with pytest.raises(
    errors.UserError, match=r'data\.shapes.*at least \(6, 260\)'
  ):
    make(shapes=((5, 260),), **settings)


def test_shapes_of_the_config_are_used(make):
  batches = make(shapes=((100, 60), (160, 80)))
  assert batches.shapes == ((100, 60), (160, 80))
  used = {
    (h.batch.prefix.shape[1], h.batch.suffix.shape[1])
    for h in take(batches, 0, 12)
  }
  assert used == {(100, 60), (160, 80)}


def test_what_was_cut_is_counted(make):
  hosts = take(make(max_prefix_tokens=50), 0, 12)
  for host in hosts:
    lengths = (host.batch.prefix_positions >= 0).sum(axis=1)
    assert lengths.max() <= 50
  assert sum(h.passages_dropped for h in hosts) > 5
  assert sum(h.passages_cut for h in hosts) > 5
  assert (
    sum(h.passages_cut + h.passages_dropped for h in take(make(), 0, 12)) == 0
  )


def record(passages) -> Record:
  return Record('i', 'd', 'q', ('a',), passages)


def ranked(name):
  return tuple(Passage(f'{name}{i}', '', f'text {i}') for i in range(5))


def test_evaluation_shows_the_top_ones():
  settings = config.Eval(num_passages=3)
  one = record({'bm25': ranked('b'), GOLD: ranked('g')})
  shown = pipeline.shown_passages(one, settings, 0)
  assert [(r, p.id) for r, p in shown] == [(0, 'b0'), (1, 'b1'), (2, 'b2')]
  settings = config.Eval(num_passages=3, retriever=GOLD)
  shown = pipeline.shown_passages(one, settings, 0)
  assert [p.id for _, p in shown] == ['g0', 'g1', 'g2']
  two = record({'bm25': ranked('b'), 'e5': ranked('e')})
  with pytest.raises(RecordError, match='bm25, e5'):
    pipeline.shown_passages(two, config.Eval(), 0)
  assert pipeline.shown_passages(two, config.Eval(num_passages=0), 0) == ()
  other = config.Eval(num_passages=9, retriever='e5')
  assert [p.id for _, p in pipeline.shown_passages(two, other, 0)] == [
    f'e{i}' for i in range(5)
  ]
  assert pipeline.shown_passages(two, config.Eval(retriever='x'), 0) == ()


def test_evaluation_shuffles_by_seed_and_id():
  settings = config.Eval(num_passages=3, shuffle_passages=True)
  first = collections.Counter()
  for i in range(300):
    one = dataclasses.replace(record({'bm25': ranked('b')}), id=f'{i}')
    shown = pipeline.shown_passages(one, settings, 0)
    assert shown == pipeline.shown_passages(one, settings, 0)
    assert {r for r, _ in shown} == {0, 1, 2}
    first[tuple(r for r, _ in shown)] += 1
  assert len(first) == math.factorial(3) and min(first.values()) > 25


def test_little_padding_on_real_questions(smollm2_path, tmp_path):
  """The quickstart's questions, one or two passages each, batches of 32."""
  packed = pathlib.Path(pipeline.__file__).parent / 'quickstart/train.jsonl.gz'
  with gzip.open(packed, 'rt', encoding='utf-8') as file:
    lines = list(itertools.islice(file, 0, None, 3))
  (tmp_path / 'train.jsonl').write_text(''.join(lines))
  cfg = config.Config(
    workdir=str(tmp_path),
    data=config.Data(
      train=(str(tmp_path / 'train.jsonl'),),
      passages=config.Passages(number=(1, 2)),
      batch_size=32,
      examples_per_row=4,
      max_suffix_tokens=192,
    ),
  )
  assembler = Assembler.for_run(load_tokenizer(smollm2_path), cfg)
  mixture, _ = training_set.open_training_set(
    cfg, assembler, [], lambda text: None
  )
  assert sum(mixture.sizes) == 1000
  batches = pipeline.TrainBatches(
    mixture, cfg.data, cfg.virtual_tokens, assembler, 49152, 0
  )
  assert len(batches.shapes) <= 6
  hosts = take(batches, 0, 96)
  real = sum(host.real_tokens for host in hosts)
  assert real / sum(host.computed_tokens for host in hosts) >= 0.92
