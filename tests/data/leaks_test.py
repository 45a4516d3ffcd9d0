import gzip
import json
import pathlib

import numpy as np
import pytest

from vtokens.data import leaks

DATA = pathlib.Path(leaks.__file__).parent


@pytest.mark.parametrize(
  ('a', 'b'),
  [
    ('Who wrote Hamlet?', 'who wrote  hamlet'),
    ('Who wrote the Hamlet?', 'Who wrote Hamlet ?'),
    ("What is the U.S.'s capital?", 'what is US’s capital'),
    ('“Hamlet” — by whom?', 'Hamlet by whom'),
    ('Ｗｈｏ ｗｒｏｔｅ ﬁlms？', 'who wrote films'),
    ('In welcher Straße?', 'in welcher STRASSE'),
    ('Qué es π²?', '¿Que\u0301 es π2'),
  ],
)
def test_the_same_question(a, b):
  assert leaks.question_key(a) == leaks.question_key(b)
  hashes = leaks.hash_questions([a, b])
  assert hashes.dtype == np.uint64 and hashes[0] == hashes[1]


@pytest.mark.parametrize(
  ('a', 'b'),
  [
    ('Who wrote Hamlet?', 'Who wrote Macbeth?'),
    ('Who is Rene?', 'Who is René?'),
    ('Is A before B?', 'Is B before A?'),
    ('The?', 'A?'),
    ('???', '!!!'),
    ('谁写了哈姆雷特？', '谁写了麦克白？'),
  ],
)
def test_another_question(a, b):
  hashes = leaks.hash_questions([a, b])
  assert hashes[0] != hashes[1]


def test_hashes_are_the_same_everywhere():
  # Computed with coreutils: printf 'who wrote hamlet' | b2sum -l 64.
  expected = bytes.fromhex('2db7b7d64f3c0ace')
  assert leaks.hash_questions(['Who wrote Hamlet?'])[0] == int.from_bytes(
    expected, 'little'
  )


def test_planted_leaks():
  train = {
    'nq': ['who is a?', 'What is b', 'when was c?', 'what is b?'],
    'squad': ['Where is d?', 'why e?'],
    'clean': ['how f?'],
  }
  held_out = {
    'nq.test': ['What is: B?', 'who is g'],
    'popqa.test': ['WHERE is the d?', 'what is b', 'what is b!'],
    'empty.test': [],
  }
  found = leaks.find_leaks(
    {name: leaks.hash_questions(q) for name, q in train.items()},
    {name: leaks.hash_questions(q) for name, q in held_out.items()},
  )
  assert {pair: n for pair, n in found.counts.items() if n} == {
    ('nq', 'nq.test'): 2,
    ('nq', 'popqa.test'): 2,
    ('squad', 'popqa.test'): 1,
  }
  assert len(found.counts) == 9
  assert {name: mask.tolist() for name, mask in found.remove.items()} == {
    'nq': [False, True, False, True],
    'squad': [True, False],
    'clean': [False],
  }
  assert leaks.format_leaks(found).splitlines() == [
    'training set  held-out set  questions  of',
    'nq            nq.test               2   4',
    'nq            popqa.test            2   4',
    'nq            any                   2   4',
    'squad         popqa.test            1   2',
  ]


def test_report_without_leaks():
  found = leaks.find_leaks(
    {'nq': leaks.hash_questions(['a1', 'b1'])},
    {'test': leaks.hash_questions(['c1'])},
  )
  assert leaks.format_leaks(found) == (
    'no question of 1 held-out set is among 2 training questions'
  )


def test_hundreds_of_thousands():
  rng = np.random.default_rng(0)
  train = rng.integers(2**63, size=450_000, dtype=np.uint64)
  test = rng.integers(2**63, size=130_000, dtype=np.uint64)
  leaked = rng.choice(len(train), 1000, replace=False)
  test[:1000] = train[leaked]
  found = leaks.find_leaks({'train': train}, {'test': test})
  assert found.counts == {('train', 'test'): 1000}
  assert set(np.flatnonzero(found.remove['train'])) == set(leaked)


def test_real_data():
  """No shipped test question is a training question, unless it is planted."""
  sets = {}
  for name in (
    'quickstart/train',
    'quickstart/validation',
    'quickstart/test',
    'open_qa/questions',
  ):
    with gzip.open(DATA / f'{name}.jsonl.gz', 'rt', encoding='utf-8') as file:
      questions = [json.loads(line)['question'] for line in file]
    sets[name] = leaks.hash_questions(questions)
  train = {'train': sets.pop('quickstart/train')}
  found = leaks.find_leaks(train, sets)
  assert len(found.counts) == 3
  assert not any(found.counts.values())

  sets['open_qa/questions'][7] = train['train'][100]
  found = leaks.find_leaks(train, sets)
  assert found.counts['train', 'open_qa/questions'] == 1
  assert np.flatnonzero(found.remove['train']).tolist() == [100]
