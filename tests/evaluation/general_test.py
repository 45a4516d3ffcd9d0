"""Runs of general tasks: results, files, and what is not computed again."""

import json
import shutil

import numpy as np
import pytest
import scipy.stats

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation import choices, general, task_prompts, tasks
from vtokens.evaluation.tasks import Task
from vtokens.host import errors, stopping
from vtokens.models import frozen_base


@pytest.fixture(scope='module')
def base(tiny_dir):
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture
def settings(tmp_path):
  words = ['sun', 'moon', 'a long wind', 'sea', 'tide', 'ice and snow']

  def rows(letter, count):
    return [
      {
        'id': f'{letter}{i}',
        'question': f'{letter} {words[i % 6]} {i}?',
        'choices': [words[(i + j) % 6] for j in range(2 + i % 3)],
        'answers': [words[i % 6]],
      }
      for i in range(count)
    ]

  sums = [
    {'id': str(i), 'question': f'{i} + 1?', 'answers': [str(i + 1)]}
    for i in range(3)
  ]
  truths = [
    {'id': str(i), 'question': f'is {i} even?', 'answers': ['yes', 'true'][:1]}
    for i in range(4)
  ]
  return {
    'facts': Task(
      source=write(tmp_path / 'facts.jsonl', rows('q', 11)),
      format='mmlu',
      shots=2,
      shots_source=write(tmp_path / 'shots.jsonl', rows('s', 7)),
    ),
    'truths': Task(
      source=write(tmp_path / 'truths.jsonl', truths), format='boolq'
    ),
    'sums': Task(
      source=write(tmp_path / 'sums.jsonl', sums),
      format='gsm8k',
      max_new_tokens=6,
    ),
  }


def run(base, settings, directory, **more):
  seed = more.setdefault('seed', 0)
  loaded = [tasks.load(name, task, seed) for name, task in settings.items()]
  return general.run_tasks(
    base,
    partitioning.make_mesh((-1, 1, 1)),
    loaded,
    **{
      'batch_size': 4,
      'directory': directory,
      'stop': stopping.StopRequest(),
      **more,
    },
  )


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_and_predictions(base, settings, tmp_path):
  facts, truths, sums = run(base, settings, tmp_path / 'out')['tasks']
  rows = lines(tmp_path / 'out/facts.jsonl')
  # Each question by itself, with a mean of our own.
  loaded = tasks.load('facts', settings['facts'], 0)
  right = {'sum': [], 'per_token': [], 'per_byte': []}
  for question, row in zip(loaded.questions, rows, strict=True):
    item = choices.make_item(
      base.tokenizer,
      task_prompts.render(loaded, question),
      question.choices,
      id='',
    )
    [sums_alone] = choices.score(
      base, partitioning.make_mesh((-1, 1, 1)), [item], batch_size=1, label=''
    )
    assert row['id'] == question.id
    np.testing.assert_allclose(row['log_probabilities'], sums_alone, atol=1e-3)
    # One token a byte here, and the space before.
    sizes = np.array([len(choice) for choice in question.choices])
    for name, by in (('sum', 1), ('per_token', sizes + 1), ('per_byte', sizes)):
      pick = question.choices[np.argmax(sums_alone / by)]
      assert row['predictions'][name] == pick
      right[name].append(pick in question.answers)
      assert row['right'][name] is right[name][-1]
  assert facts['n'] == 11 and facts['shots'] == 2
  assert facts['accuracy'] == pytest.approx(100 * np.mean(right['sum']))
  for name in ('per_token', 'per_byte'):
    expected = 100 * np.mean(right[name])
    assert facts[f'accuracy_{name}'] == pytest.approx(expected)
  # 4, 4 and 3 questions with 2, 3 and 4 choices.
  guess = 100 * (4 / 2 + 4 / 3 + 3 / 4) / 11
  assert facts['guessing'] == pytest.approx(guess)
  assert truths['guessing'] == 50.0
  assert truths['accuracy'] in (0.0, 100.0)
  assert any("the line 'Passage:'" in note for note in truths['notes'])
  # A random model has no answer.
  assert (sums['accuracy'], sums['unanswered']) == (0.0, 100.0)
  written = lines(tmp_path / 'out/sums.jsonl')
  assert [row['prediction'] for row in written] == [None] * 3
  assert sums['mean_tokens'] == np.mean([row['num_tokens'] for row in written])
  text = general.format_results({'tasks': [facts, truths, sums]})
  assert [line.split()[0] for line in text.splitlines()[1:]] == [*settings]


@pytest.mark.parametrize(('right', 'n'), [(0, 3), (7, 20), (50, 50)])
def test_interval_is_wilsons(base, settings, right, n):
  task = tasks.load('truths', settings['truths'], 0)
  result = general.common_result(
    task, [True] * right + [False] * (n - right), []
  )
  z = scipy.stats.norm.ppf(0.975)
  p = right / n
  middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  np.testing.assert_allclose(
    result['interval'],
    [100 * (middle - half), 100 * (middle + half)],
    atol=1e-9,
  )


def test_finished_tasks_are_not_computed_again(
  base, settings, tmp_path, monkeypatch
):
  out = tmp_path / 'general' / 'out'
  whole = run(base, settings, tmp_path / 'whole')

  class Killed(Exception):
    pass

  scored = []
  original = choices.score

  def counts(base, mesh, items, **more):
    scored.append(len(items))
    return original(base, mesh, items, **more)

  monkeypatch.setattr(choices, 'score', counts)

  def stop_at_second(number):
    if (out / 'facts.json').exists():
      raise Killed
    return number

  with pytest.raises(Killed):
    run(base, settings, out, stop=stopping.StopRequest(stop_at_second))
  assert scored == [11]
  assert run(base, settings, out) == whole
  assert scored == [11, 4]
  before = (out / 'facts.jsonl').read_bytes()
  assert before == (tmp_path / 'whole/facts.jsonl').read_bytes()
  # The batch size is no matter of the result, so of no identity.
  assert run(base, settings, out, batch_size=2) == whole
  assert scored == [11, 4]
  run(base, settings, out, seed=1)
  assert scored == [11, 4, 11, 4]
  run(base, settings, out)
  assert scored == [11, 4] * 3
  # Another file under the same name.
  with open(settings['truths'].source, 'a') as file:
    file.write('{"id": "new", "question": "x?", "answers": ["no"]}\n')
  run(base, settings, out)
  assert scored == [11, 4] * 3 + [5]
  # Predictions that somebody cut.
  (out / 'facts.jsonl').write_text('')
  run(base, settings, out)
  assert scored == [11, 4] * 3 + [5, 11]
  assert (out / 'facts.jsonl').read_bytes() == before
  # A result that somebody changed.
  path = out / 'facts.json'
  text = path.read_text()
  path.write_text(text.replace('"n": 11', '"n": 12'))
  assert path.read_text() != text
  run(base, settings, out)
  assert scored == [11, 4] * 3 + [5, 11, 11]
  assert path.read_text() == text


def test_a_base_and_files_that_moved(base, settings, tmp_path, monkeypatch):
  """The directory is called after the base's path; files count as content."""
  before = run(base, settings, tmp_path / 'general' / 'a')
  (tmp_path / 'moved').mkdir()
  for task in settings.values():
    for field in ('source', 'shots_source'):
      if path := getattr(task, field):
        moved = shutil.copy(path, tmp_path / 'moved')
        setattr(task, field, moved)
  monkeypatch.setattr(choices, 'score', None)
  after = run(base, settings, tmp_path / 'general' / 'b')
  for old, new in zip(before['tasks'], after['tasks'], strict=True):
    assert new == old | {'source': settings[new['task']].source}
  for path in (tmp_path / 'general' / 'a').iterdir():
    other = tmp_path / 'general' / 'b' / path.name
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize('damage', ['', '[]', '{}', '[' * 100_000])
def test_a_result_that_is_damaged(base, settings, tmp_path, damage):
  (facts,) = [{'facts': settings['facts']}]
  run(base, facts, tmp_path / 'a')
  (tmp_path / 'a' / 'facts.json').write_text(damage)
  with pytest.raises(
    errors.UserError, match=r'facts\.json: .*; delete it to have the task'
  ):
    run(base, facts, tmp_path / 'a')


def test_too_long_for_the_base(base, settings):
  settings['sums'].max_new_tokens = 600
  loaded = [tasks.load(name, task, 0) for name, task in settings.items()]
  with pytest.raises(errors.UserError) as e:
    general.check_fits(base, loaded)
  assert str(e.value).startswith('config.tasks[sums]: question 0 has 6')
