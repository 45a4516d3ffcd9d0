"""Tests of the quickstart files and of the script that makes them."""

import collections
import gzip
import importlib.resources
import itertools
import json
import lzma
import pathlib
import runpy

import pytest

from vtokens.data import assemble, formats, records
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.data.quickstart import build_quickstart
from vtokens.models.tokenizers.tokenizer import load_tokenizer
from vtokens.scoring import metrics

_CONFIG = pathlib.Path(__file__).parents[2] / 'configs/quickstart.py'
SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def shipped():
  folder = importlib.resources.files('vtokens.data') / 'quickstart'
  paths = [str(folder / f'{split}.jsonl.gz') for split in SPLITS]
  # Read together, so that ids have to be unique over all three.
  together = formats.read_all(paths)
  by_path = [formats.read_all([path]) for path in paths]
  assert [row for rows in by_path for row in rows] == together
  return dict(zip(SPLITS, by_path, strict=True))


def _questions(rows):
  return {metrics.normalize_answer(row.question) for row in rows}


@pytest.mark.parametrize(
  ('split', 'count'), [('train', 1500), ('validation', 100), ('test', 150)]
)
def test_counts(shipped, split, count):
  datasets = collections.Counter(r.dataset for r in shipped[split])
  assert datasets == {'squad': count, 'entityquestions': count}


def test_every_record_has_two_different_passages(shipped):
  for row in itertools.chain(*shipped.values()):
    assert list(row.passages) == [records.GIVEN]
    gold, distractor = row.ranked()
    assert gold.id and distractor.id
    assert gold.id != distractor.id
    assert gold.text != distractor.text


def test_no_question_is_in_two_splits(shipped):
  train, validation, test = (_questions(shipped[s]) for s in SPLITS)
  assert not train & validation
  assert not train & test
  assert not validation & test


def test_no_squad_paragraph_of_validation_or_test_is_trained_on(shipped):
  seen = {p.id for row in shipped['train'] for p in row.ranked()}
  gold = {r.ranked()[0].id for r in shipped['train']}
  for row in shipped['validation']:
    if row.dataset == 'squad':
      assert row.ranked()[0].id not in seen, row.id
  for row in shipped['test']:
    if row.dataset == 'squad':
      assert row.ranked()[0].id not in gold, row.id


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('dataset', ['squad', 'entityquestions'])
def test_the_gold_passage_has_the_answer(shipped, split, dataset):
  rows = [r for r in shipped[split] if r.dataset == dataset]
  found = 0
  for row in rows:
    # Spaces around both: whole words only.
    text = f' {metrics.normalize_answer(row.ranked()[0].text)} '
    answers = [metrics.normalize_answer(answer) for answer in row.answers]
    found += any(f' {answer} ' in text for answer in answers if answer)
  assert found / len(rows) >= 0.95


def test_examples_are_short(shipped):
  for rows in shipped.values():
    for r in rows:
      assert sum(len(p.title) + len(p.text) for p in r.ranked()) <= 1200
      assert max(map(len, r.answers)) <= 50


def test_the_config_cuts_nothing(shipped, smollm2_path):
  """By the tokenizer of the quickstart's base."""
  cfg = runpy.run_path(str(_CONFIG))['get_config']()
  encoder = PromptEncoder(load_tokenizer(smollm2_path), cfg.templates)
  rows = [row for rows in shipped.values() for row in rows]
  limits = cfg.data
  first, second = len(encoder.head(1)), len(encoder.head(2))
  for row in rows:
    gold, other = encoder.passages(row.ranked())
    bodies = len(gold.body) + len(other.body)
    ends = [max(len(p.end), len(p.last_end)) for p in (gold, other)]
    assert first + second + bodies + sum(ends) <= limits.max_prefix_tokens
    prompt = encoder.prompt(row.question, name='prompt', chat=False)
    for answer in encoder.answers(row.answers, chat=False):
      assert len(answer) <= limits.max_answer_tokens
      length = assemble.suffix_len(
        cfg.virtual_tokens.num_virtual_tokens, len(prompt), len(answer)
      )
      assert length <= limits.max_suffix_tokens


def test_the_sets_take_turns(shipped):
  for rows in shipped.values():
    assert {r.dataset for r in rows[::2]} == {'squad'}
    assert {r.dataset for r in rows[1::2]} == {'entityquestions'}


def _passage(id_, text=None, **more):
  return {'id': id_, 'title': '', 'text': text or f'text of {id_}', **more}


CORPUS = {id_: _passage(id_) for id_ in 'abcd'}
CORPUS['copy'] = _passage('copy', 'text of a')


@pytest.mark.parametrize(
  ('golds', 'retrieved', 'expected'),
  [
    ('a', 'bc', 'ab'),
    ('a', 'acb', 'ac'),
    ('ab', 'bacd', 'ac'),
    ('ba', 'bacd', 'bc'),
    ('a', ['copy', 'a', 'd'], 'ad'),
    ('ba', ['copy', 'd'], 'bd'),
    ('a', ['a', 'copy'], None),
    ('a', [], None),
  ],
)
def test_choice_of_passages(golds, retrieved, expected):
  row = {
    'id': 'q',
    'dataset': 'squad',
    'question': 'Q?',
    'answers': ['A'],
    'passages': [
      _passage('z', gold=False),
      *(_passage(id_, gold=True) for id_ in golds),
    ],
    'retrieved': [[id_, 1.0] for id_ in retrieved],
    'answer_in_retrieved': 0,
  }
  record = build_quickstart.to_record(row, CORPUS)
  if expected is None:
    assert record is None
    return
  assert record == {
    'id': 'q',
    'dataset': 'squad',
    'question': 'Q?',
    'answers': ['A'],
    'passages': [CORPUS[expected[0]], CORPUS[expected[1]]],
  }


@pytest.fixture
def source(tmp_path):
  """Input files: 40 train and 10 held-out questions for each set."""
  corpus = {f'far{i}': _passage(f'far{i}') for i in range(5)}

  def row(name, i):
    # Four SQuAD questions share a paragraph, as two pieces, and retrieve both
    # pieces of the next paragraph.
    gold, near = (f'{name}-{j}.{i % 2}' for j in (i // 4, i // 4 + 1))
    for id_ in (gold, near):
      corpus[id_] = _passage(id_)
    question = f'What is {name} number {i}?'
    if i == 0:
      question = {
        'squad.train': 'Asked of a TEST?',
        'squad.test': 'asked of the test',
        'entityquestions.train': 'Asked of dev?',
        'entityquestions.dev': 'asked of dev.',
      }.get(name, question)
    return {
      'id': f'{name}-{i}',
      'question': question,
      'answers': [gold],
      'passages': [{**corpus[gold], 'gold': True}],
      'retrieved': [[gold, 9.0], [near if i % 3 else f'far{i % 5}', 8.0]],
    }

  for dataset, split, count in (
    ('squad', 'train', 40),
    ('squad', 'test', 10),
    ('entityquestions', 'train', 40),
    ('entityquestions', 'dev', 10),
    ('entityquestions', 'test', 10),
  ):
    name = f'{dataset}.{split}'
    with gzip.open(tmp_path / f'{name}.jsonl.gz', 'wt') as file:
      for i in range(count):
        file.write(json.dumps(row(name, i)) + '\n')
  with lzma.open(tmp_path / 'corpus.jsonl.xz', 'wt') as file:
    for passage in corpus.values():
      file.write(json.dumps(passage) + '\n')
  return tmp_path


def _paragraphs(row):
  return {p['id'].rsplit('.', 1)[0] for p in row['passages']}


def test_selection(source):
  splits = build_quickstart.build(
    build_quickstart.read_questions(source),
    source,
    num_train=12,
    num_validation=4,
    num_test=5,
  )
  for split, count in (('train', 12), ('validation', 4), ('test', 5)):
    datasets = collections.Counter(r['dataset'] for r in splits[split])
    assert datasets == {'squad': count, 'entityquestions': count}
  ids = [row['id'] for rows in splits.values() for row in rows]
  assert len(ids) == len(set(ids))
  # Their questions are those of a test and of a dev line, selected or not.
  assert 'squad.train-0' not in ids
  assert 'entityquestions.train-0' not in ids
  trained_on = set().union(*map(_paragraphs, splits['train']))
  for row in splits['validation']:
    if row['dataset'] == 'squad':
      assert row['id'].startswith('squad.train')
      gold = {**row, 'passages': row['passages'][:1]}
      assert not trained_on & _paragraphs(gold)
    else:
      assert row['id'].startswith('entityquestions.dev')


def test_too_few_questions_is_an_error(source):
  with pytest.raises(ValueError, match=r'^10 questions fit, .* 11$'):
    build_quickstart.build(
      build_quickstart.read_questions(source),
      source,
      num_train=12,
      num_validation=4,
      num_test=11,
    )


def test_the_script_writes_the_same_bytes_again(source, monkeypatch, capsys):
  arguments = dict.fromkeys(('num_train', 'num_validation', 'num_test'), 2)
  monkeypatch.setattr(build_quickstart.build, '__kwdefaults__', arguments)
  contents = []
  for name in ('one', 'two'):
    out = source / name
    out.mkdir()
    build_quickstart.main(
      ['--qa', str(source), '--corpus', str(source), '--out', str(out)]
    )
    contents.append([(out / f'{s}.jsonl.gz').read_bytes() for s in SPLITS])
    assert len(formats.read_all(sorted(map(str, out.iterdir())))) == 12
  assert contents[0] == contents[1]
  # The four bytes of the time in the header of a gzip file.
  assert all(content[4:8] == bytes(4) for content in contents[0])
  assert 'train.jsonl.gz: 4 records' in capsys.readouterr().out
