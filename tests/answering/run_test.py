"""What `vtokens.load` returns."""

import json

import pytest
import tiny_models
import trained_runs

import vtokens
from vtokens.answering import Request
from vtokens.exports import trained_table
from vtokens.serving import artifact, table_file

PASSAGES = ['The tower was completed in 1859.', 'Big Ben is a bell.']
QUESTIONS = [f'When was tower {i} completed?' for i in range(5)]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp('run')
  tiny_models.save(root / 'base')
  trained_runs.write_run(root / 'run', root / 'base')
  # Room for the instruction: tokens are bytes.
  settings = json.loads((root / 'run' / 'config.json').read_text())
  settings['data']['max_suffix_tokens'] = 300
  (root / 'run' / 'config.json').write_text(json.dumps(settings))
  return root


@pytest.fixture(scope='module')
def run(place):
  return vtokens.load(place / 'run')


def test_an_answer(run):
  found = run.answer('When?', passages=PASSAGES, k=3)
  [expected] = run.engine.answer(
    [Request(question='When?', passages=PASSAGES, k=3, table='tokens')]
  )
  assert (found.text, found.ids) == (expected.text, expected.ids)
  assert found.shown == (0, 1)
  assert found.seconds > 0
  # The run's own limit.
  assert len(found.ids) <= 6


def test_many_answers_in_order(run):
  asked = iter(
    [
      QUESTIONS[0],
      {'question': QUESTIONS[1], 'passages': PASSAGES, 'k': 2},
      Request(question=QUESTIONS[2], table='tokens'),
      *QUESTIONS[3:],
    ]
  )
  answers = run.answer_many(asked, batch_size=2, max_new_tokens=3)
  found = [next(answers)]
  # Questions are read as they are needed.
  assert next(asked).question == QUESTIONS[2]
  found += answers
  alone = [
    run.answer(QUESTIONS[0], max_new_tokens=3),
    run.answer(QUESTIONS[1], PASSAGES, 2, max_new_tokens=3),
    *(run.answer(question, max_new_tokens=3) for question in QUESTIONS[3:]),
  ]
  assert [a.ids for a in found] == [a.ids for a in alone]


def test_a_bad_question_among_many(run):
  with pytest.raises(vtokens.UserError, match=r'questions\[1\]: .* blank'):
    list(run.answer_many(['one?', ' ']))
  with pytest.raises(vtokens.UserError, match=r"questions\[0\]: .*'answer'"):
    list(run.answer_many([{'question': 'one?', 'answer': 'x'}]))


def test_a_stream(run):
  parts = list(run.stream('When?', PASSAGES, max_new_tokens=12))
  assert ''.join(parts) == run.answer('When?', PASSAGES, max_new_tokens=12).text


def test_several_ways(run):
  found = run.compare('When?', PASSAGES, k=2)
  assert list(found) == ['closed_book', 'prompt', 'chat_prompt', 'tokens']
  assert found['tokens'].ids == run.answer('When?', PASSAGES, 2).ids
  assert found['closed_book'].shown == ()
  found = run.compare('When?', PASSAGES, ('concat',))
  assert list(found) == ['concat']


def test_scores(run, place):
  rows = [
    {'question': question, 'answers': ['1859'], 'passages': PASSAGES}
    for question in QUESTIONS
  ]
  found = run.score(rows)
  assert (found['em'], found['n']) == (0.0, 5)
  texts = [a.text for a in run.answer_many(QUESTIONS, passages=PASSAGES)]
  right = [
    {**row, 'answers': [text or 'nothing']}
    for row, text in zip(rows, texts, strict=True)
  ]
  assert run.score(right)['em'] == 100 * sum(map(bool, texts)) / 5
  assert run.score(str(place / 'run' / 'questions.jsonl'))['n'] == 12
  with pytest.raises(vtokens.UserError, match=r'questions\[0\]\["answers"\]'):
    run.score([{'question': 'x?', 'answers': '1859'}])


def test_the_table(run, place):
  table, _ = table_file.load(place / 'run' / 'table.safetensors')
  assert (run.table.values == table).all()
  assert (run.table.count, run.table.kind) == (5, 'table')
  assert run.table.sha256 == table_file.sha256(table)


def test_an_export(run, place, tmp_path):
  source = trained_table.read(str(place / 'run'))
  artifact.write(tmp_path, source.table)
  # An export has no paths of the machine that made it.
  with pytest.raises(vtokens.UserError, match=r'base does not exist.*base=.*'):
    vtokens.load(tmp_path)
  loaded = vtokens.load(tmp_path, base=str(place / 'base'))
  assert loaded.table.sha256 == run.table.sha256
  for k in (None, 2):
    one, other = (
      one.answer(QUESTIONS[0], PASSAGES, k) for one in (run, loaded)
    )
    assert (one.text, one.ids, one.stop) == (other.text, other.ids, other.stop)


def test_a_base_that_moved(run, place, tmp_path):
  (tmp_path / 'moved').symlink_to(place / 'base')
  (tmp_path / 'run').mkdir()
  for file in (place / 'run').iterdir():
    (tmp_path / 'run' / file.name).write_bytes(file.read_bytes())
  settings = json.loads((tmp_path / 'run' / 'config.json').read_text())
  settings['base']['path'] = '/nowhere'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(vtokens.UserError, match='/nowhere'):
    vtokens.load(tmp_path / 'run')
  moved = vtokens.load(tmp_path / 'run', base=str(tmp_path / 'moved'))
  assert moved.answer('When?').ids == run.answer('When?').ids
