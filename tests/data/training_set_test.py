"""From sources to the examples of a run: what is left out, and what is said."""

import itertools
import json

import numpy as np
import pytest
import tiny_models

from vtokens import config
from vtokens.data import pipeline, sources, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import Member
from vtokens.evaluation.asking.prompter import Prompter, tokens_variant
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory) -> Tokenizer:
  """A token is a byte."""
  directory = tmp_path_factory.mktemp('tokenizer')
  tiny_models.save_tokenizer(directory)
  return load_tokenizer(directory)


def _row(i, **changes):
  return {
    'id': f'q{i}',
    'dataset': 'ab'[i % 2],
    'question': f'Who is number {i}?',
    'answers': [f'N{i}'],
    'passages': [f'Number {i}.'],
    **changes,
  }


@pytest.fixture
def write(tmp_path):
  def write(name, rows):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)

  return write


@pytest.fixture
def make_config(tmp_path):
  def make_config(**data) -> config.Config:
    cfg = config.Config(
      workdir=str(tmp_path / 'run'),
      base=config.Base(path='b'),
      virtual_tokens=config.VirtualTokens(num_virtual_tokens=4),
      data=config.Data(
        **{'max_suffix_tokens': 60, 'max_answer_tokens': 8, **data}
      ),
      eval=config.Eval(num_active=(4,)),
    )
    config.validate(cfg)
    return cfg

  return make_config


def _open(cfg, tokenizer, held_out=()):
  """The mixture, messages of bad records, and what was said."""
  said = []
  mixture, left_out = training_set.open_training_set(
    cfg, Assembler.for_run(tokenizer, cfg), held_out, said.append
  )
  return mixture, left_out, said


def _ids(mixture):
  return {
    name: [
      mixture.id(mixture.member(number, i))
      for i in range(mixture.sizes[number])
    ]
    for number, name in enumerate(mixture.names)
  }


def test_every_record_once(tokenizer, write, make_config):
  first = write('first', [_row(i) for i in range(5)])
  second = write('second', [_row(i) for i in range(5, 8)])
  cfg = make_config(train=(first, second))
  mixture, left_out, said = _open(cfg, tokenizer)
  assert _ids(mixture) == {
    'a': ['q0', 'q2', 'q4', 'q6'],
    'b': ['q1', 'q3', 'q5', 'q7'],
  }
  assert left_out == said == []


def test_data_sets_of_folders_shards_and_names(
  tokenizer, write, make_config, tmp_path
):
  """Weights go by data set, and another name is another token cache."""
  paths = []
  for name, numbers in (
    ('nq/train-00000-of-00002', [0, 1]),
    ('nq/train-00001-of-00002', [2]),
    ('tqa/train-00000-of-00001', [3]),
  ):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rows = [_row(i, id=f'train_{i % 3}') for i in numbers]
    for row in rows:
      del row['dataset']
    paths.append(write(name, rows))
  weights = {'nq': 3.0, 'tqa': 1.0}
  mix = config.Mixture(weighting='weights', weights=weights)
  cfg = make_config(train=tuple(paths), mixture=mix)
  mixture, _, _ = _open(cfg, tokenizer)
  expected = {
    'nq': ['nq/train_0', 'nq/train_1', 'nq/train_2'],
    'tqa': ['tqa/train_0'],
  }
  assert _ids(mixture) == expected
  assert mixture.weights == [0.75, 0.25]
  assert sources.regrouped(paths) == {'0': 'nq', '1': 'nq', '2': 'tqa'}
  paths[2] = f'open={paths[2]}'
  cfg = make_config(train=tuple(paths))
  mixture, _, _ = _open(cfg, tokenizer)
  assert _ids(mixture) == {'nq': expected['nq'], 'open': ['open/train_0']}
  # One source keeps the name that it always had, and no run is refused.
  assert sources.regrouped(['nq/train.jsonl']) == {}
  assert sources.regrouped(['nq.train.jsonl', 'squad.train.jsonl']) == {}


def test_tokenised_once(tokenizer, write, make_config, tmp_path):
  path = write('train', [_row(i) for i in range(5)])
  cfg = make_config(train=(path,))
  before, _, _ = _open(cfg, tokenizer)
  files = {
    file: (file.stat().st_mtime_ns, file.is_file() and file.read_bytes())
    for file in (tmp_path / 'run' / 'tokens').rglob('*')
  }
  assert len(files) > 10
  again, _, _ = _open(cfg, tokenizer)
  assert _ids(again) == _ids(before)
  assert files == {
    file: (file.stat().st_mtime_ns, file.is_file() and file.read_bytes())
    for file in (tmp_path / 'run' / 'tokens').rglob('*')
  }
  # Another place to keep them; other content, other tokens.
  cfg.data.token_cache = str(tmp_path / 'shared')
  write('train', [_row(i) for i in range(6)])
  other, _, _ = _open(cfg, tokenizer)
  assert sum(other.sizes) == 6
  assert (tmp_path / 'shared').is_dir()


def test_a_file_that_changes_between_two_runs(tokenizer, write, make_config):
  """In a notebook both are in one process."""
  path = write('train', [_row(0), _row(2)])
  cfg = make_config(train=(path,))
  before, _, _ = _open(cfg, tokenizer)
  assert _ids(before) == {'a': ['q0', 'q2']}
  written = sources.fingerprint(path)
  # Of the same size.
  write('train', [_row(4), _row(6)])
  assert sources.fingerprint(path) != written
  after, _, _ = _open(cfg, tokenizer)
  assert _ids(after) == {'a': ['q4', 'q6']}


@pytest.mark.parametrize('remove', [True, False])
def test_questions_that_are_held_out(tokenizer, write, make_config, remove):
  path = write('train', [_row(i) for i in range(6)])
  test = write(
    'test',
    [
      _row(2, id='t0', dataset='x', question='who is NUMBER 2'),
      _row(3, id='t1', dataset='x'),
      _row(4, id='t2', dataset='y'),
      _row(9, id='t3', dataset='y'),
    ],
  )
  cfg = make_config(
    train=(path,), test=(test,), mixture=config.Mixture(remove_leaks=remove)
  )
  held_out = training_set.read_held_out(cfg, 'test', 0, BadRecords('error'))
  mixture, _, said = _open(cfg, tokenizer, [held_out])
  kept = _ids(mixture)
  if remove:
    assert kept == {'a': ['q0'], 'b': ['q1', 'q5']}
  else:
    assert kept == {'a': ['q0', 'q2', 'q4'], 'b': ['q1', 'q3', 'q5']}
  [text] = said
  title, head, *rows = text.splitlines()
  assert title == (
    'training questions that are also in the validation or test data, '
    + ('removed from training:' if remove else 'kept:')
  )
  assert head.split()[:2] == ['training', 'set']
  assert [row.split() for row in rows] == [
    ['a', 'x', '1', '3'],
    ['a', 'y', '1', '3'],
    ['a', 'any', '2', '3'],
    ['b', 'x', '1', '3'],
  ]


def test_all_questions_are_held_out(tokenizer, write, make_config):
  path = write('train', [_row(i) for i in range(3)])
  cfg = make_config(train=(path,), test=(path,))
  held_out = training_set.read_held_out(cfg, 'test', 0, BadRecords('error'))
  with pytest.raises(errors.UserError, match=r'no training example is left'):
    _open(cfg, tokenizer, [held_out])


class TestTooLong:
  """Of 60 tokens 4 are virtual, 18 the template's and 2 of an answer `a`."""

  def rows(self):
    return [
      _row(0),
      # The second of its answers fits.
      _row(1, answers=['long answer', 'short', 'long as well']),
      _row(2, answers=['much too long']),
      _row(3, question='q' * 37, answers=['a']),
      _row(4, question='q' * 36, answers=['a']),
    ]

  def test_is_an_error_that_names_the_record(
    self, tokenizer, write, make_config
  ):
    cfg = make_config(train=(write('train', self.rows()),))
    with pytest.raises(errors.UserError, match=r'^record q2: 4 virtual tokens'):
      _open(cfg, tokenizer)

  def test_is_left_out_and_counted(self, tokenizer, write, make_config):
    cfg = make_config(
      train=(write('train', self.rows()),), on_bad_record='skip'
    )
    mixture, _, said = _open(cfg, tokenizer)
    assert _ids(mixture) == {'a': ['q0', 'q4'], 'b': ['q1']}
    assert said == [
      '2 training questions are left out: no answer fits '
      'config.data.max_answer_tokens and max_suffix_tokens',
      '2 alternative answers do not fit and are never drawn',
    ]
    member = mixture.member(1, 0)
    assert {mixture.draw(1, epoch, 0).answer for epoch in range(30)} == {1}
    assert mixture.id(member) == 'q1'


class TestBadRecords:
  """A line that breaks a rule."""

  def rows(self):
    return [_row(0), _row(1, answers=[]), _row(2), _row(3, question=' ')]

  def test_is_an_error(self, tokenizer, write, make_config):
    path = write('train', self.rows())
    with pytest.raises(errors.UserError) as e:
      _open(make_config(train=(path,)), tokenizer)
    assert str(e.value).startswith(f'{path}:2: answers: ')

  def test_is_left_out_and_told_of_each_time(
    self, tokenizer, write, make_config
  ):
    path = write('train', self.rows())
    cfg = make_config(train=(path,), on_bad_record='skip')
    for _ in range(2):
      mixture, left_out, _ = _open(cfg, tokenizer)
      assert _ids(mixture) == {'a': ['q0', 'q2']}
      assert [message.split(': ')[:2] for message in left_out] == [
        [f'{path}:2', 'answers'],
        [f'{path}:4', 'question'],
      ]

  def test_left_out_before_is_an_error_all_the_same(
    self, tokenizer, write, make_config, tmp_path
  ):
    """In a cache that another run has filled with `skip`."""
    path = write('train', self.rows())
    shared = {'train': (path,), 'token_cache': str(tmp_path / 'shared')}
    _open(make_config(**shared, on_bad_record='skip'), tokenizer)
    with pytest.raises(errors.UserError) as e:
      _open(make_config(**shared), tokenizer)
    assert str(e.value).startswith(f'{path}:2: answers: ')


def test_read_held_out(write, make_config):
  rows = [_row(i) for i in range(6)]
  paths = (write('one', rows[:4]), write('two', rows[4:]))
  cfg = make_config(train=paths, validation=paths)
  report = BadRecords('error')
  for most, count in ((0, 6), (5, 5), (100, 6)):
    found = training_set.read_held_out(cfg, 'validation', most, report)
    ids = [record.id for record in found.records]
    assert ids == [f'q{i}' for i in range(count)]
    # Leaks are looked for in all of them, used or not.
    assert sum(map(len, found.question_keys.values())) == 6
  assert training_set.read_held_out(cfg, 'test', 0, report).records == []
  assert report.messages == []
  # Beyond the first ones, too.
  bad = write('two', [rows[4], _row(5, answers=[])])
  with pytest.raises(errors.UserError) as e:
    training_set.read_held_out(cfg, 'validation', 1, report)
  assert str(e.value).startswith(f'{bad}:2: answers: ')
  report = BadRecords('skip')
  found = training_set.read_held_out(cfg, 'validation', 1, report)
  assert [record.id for record in found.records] == ['q0']
  assert len(report.messages) == 1


def test_leaks_are_looked_for_in_all_held_out_data(
  tokenizer, write, make_config
):
  rows = [_row(i) for i in range(6)]
  path, test = write('train', rows), write('test', rows[:4])
  cfg = make_config(train=(path,), test=(test,))
  held_out = training_set.read_held_out(cfg, 'test', 1, BadRecords('error'))
  assert len(held_out.records) == 1
  mixture, _, _ = _open(cfg, tokenizer, [held_out])
  assert _ids(mixture) == {'a': ['q4'], 'b': ['q5']}


def test_a_retriever_that_there_is_not(tokenizer, write, make_config):
  rows = [_row(i, passages={'bm25': ['x']}) for i in range(3)]
  path = write('train', rows)
  passages = config.Passages(retrievers=('bm52',))
  for field, data in (
    ('passages', {'passages': passages}),
    (
      'mixture.passages[a]',
      {'mixture': config.Mixture(passages={'a': passages})},
    ),
  ):
    with pytest.raises(errors.UserError) as e:
      _open(make_config(train=(path,), **data), tokenizer)
    assert str(e.value).startswith(
      f'config.data.{field}.retrievers: no training'
    )
    assert "'bm52'; found passages of bm25" in str(e.value)
  cfg = make_config(train=(path,), test=(path,))
  cfg.eval.retriever = 'bm52'
  with pytest.raises(errors.UserError, match=r'eval\.retriever: no rec'):
    training_set.read_held_out(cfg, 'test', 0, BadRecords('error'))


def test_questions_without_passages_are_counted(tokenizer, write, make_config):
  rows = [_row(i, passages={'bm25': ['x']} if i else {}) for i in range(3)]
  path = write('train', rows)
  _, _, said = _open(make_config(train=(path,)), tokenizer)
  assert 'training data: 1 of 3 questions have no passages to show' in said
  cfg = make_config(train=(path,), test=(path,))
  cfg.eval.retriever = 'bm25'
  report = BadRecords('error')
  training_set.read_held_out(cfg, 'test', 0, report)
  assert report.notes['questions without passages of bm25'] == 1


def _targets(mixture, cfg, tokenizer):
  """Text of each record's target in the first window of batches."""
  batches = pipeline.TrainBatches(
    mixture,
    cfg.data,
    cfg.virtual_tokens,
    Assembler.for_run(tokenizer, cfg),
    tokenizer.max_id + 1,
    cfg.seed,
  )
  texts = {}
  with batches.starting_at(0) as stream:
    for batch in itertools.islice(stream, cfg.data.window_batches):
      for name, ids, at in zip(
        batch.ids, batch.batch.targets, batch.batch.target_index, strict=True
      ):
        *answer, last = ids[at >= 0].tolist()
        assert last == tokenizer.eos_id
        texts[name] = tokenizer.decode(answer)
  return texts


def test_questions_without_an_answer(tokenizer, write, make_config):
  rows = [
    _row(0, passages=['It is N0.']),
    _row(2, answerable=False),
    # No gold, and no passage with the answer.
    _row(4, passages=['Nothing.']),
    _row(6, answers=['yes'], passages=[{'text': 'It is.', 'gold': True}]),
  ]
  path = write('some', rows)
  cfg = make_config(train=(path,))
  mixture, _, said = _open(cfg, tokenizer)
  assert _ids(mixture) == {'a': ['q0', 'q4', 'q6']}
  assert any('they have no answer' in line for line in said)
  cfg = make_config(train=(path,), unanswerable='error')
  with pytest.raises(errors.UserError, match=r'some\.jsonl:2: answerable: '):
    _open(cfg, tokenizer)
  room = {'max_answer_tokens': 20, 'max_suffix_tokens': 80}
  cfg = make_config(train=(path,), unanswerable='refuse', **room)
  mixture, _, _ = _open(cfg, tokenizer)
  assert _ids(mixture) == {'a': ['q0', 'q2', 'q4', 'q6']}
  no = f' {cfg.templates.refusal}'
  assert _targets(mixture, cfg, tokenizer) == {
    'q0': ' N0',
    'q2': no,
    'q4': no,
    'q6': ' yes',
  }


def test_answers_with_citations(tokenizer, write, make_config):
  rows = [
    _row(i, passages=['Nothing.', f'It is N{i}.'] if i < 4 else ['Nothing.'])
    for i in range(0, 8, 2)
  ]
  room = {'max_answer_tokens': 7, 'max_suffix_tokens': 60}
  cfg = make_config(train=(write('some', rows),), **room)
  cfg.templates.answer = ' {answer} [{source}]'
  cfg.data.passages.number = (2, 2)
  cfg.data.passages.order = 'rank'
  # A token is a byte: ' N0 [2]' and its end have 8.
  with pytest.raises(errors.UserError, match=r'record q0: .* 4 of answer'):
    _open(cfg, tokenizer)
  cfg.data.max_answer_tokens = 8
  mixture, _, _ = _open(cfg, tokenizer)
  assembler = Assembler.for_run(tokenizer, cfg)
  assert _targets(mixture, cfg, tokenizer) == {
    'q0': ' N0 [2]',
    'q2': ' N2 [2]',
    'q4': ' N4',
    'q6': ' N6',
  }
  # Validation has the same targets.
  [record, *_] = sources.read(cfg.data.train, report=BadRecords())
  variant = tokens_variant(TrainedTokens('t', np.zeros((4, 8)), assembler), 4)
  example = Prompter(assembler, cfg.eval, 0).example(record, variant, 'N0')
  assert tokenizer.decode(example.targets[:-1].tolist()) == ' N0 [2]'


def test_a_refusal_that_does_not_fit(tokenizer, write, make_config):
  path = write('some', [_row(0)])
  cfg = make_config(train=(path,), unanswerable='refuse')
  with pytest.raises(errors.UserError, match=r'max_answer_tokens: .*15 tokens'):
    _open(cfg, tokenizer)
  cfg = make_config(train=(path,), unanswerable='refuse', max_answer_tokens=20)
  cfg.eval.max_new_tokens = 13
  with pytest.raises(errors.UserError, match=r'max_new_tokens: .* 14 tokens'):
    _open(cfg, tokenizer)


def test_held_out_data_need_an_answer(write, make_config):
  path = write('none', [_row(0, answerable=False)])
  cfg = make_config(train=('x',), test=(path,), unanswerable='refuse')
  with pytest.raises(
    errors.UserError, match=r'data\.test: none of the 1 quest'
  ):
    training_set.read_held_out(
      cfg, 'test', 0, training_set.bad_records(cfg.data)
    )


def test_the_order_of_sources_counts(tokenizer, write, make_config):
  paths = [write(name, [_row(i)]) for i, name in enumerate(('a', 'b'))]
  orders = []
  for train in (paths, paths[::-1]):
    cfg = make_config(train=tuple(train))
    mixture, _, _ = _open(cfg, tokenizer)
    members = [Member(dataset=0, source=0, index=i) for i in range(2)]
    orders.append([mixture.id(member) for member in members])
  assert orders == [['q0', 'q1'], ['q1', 'q0']]
