"""Runs of general tasks: results, files, and what is not computed again."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from vtokens import config
from vtokens.data.assemble import Assembler
from vtokens.devices import partitioning
from vtokens.evaluation import eval_config
from vtokens.evaluation.harness import (
  general_rows,
  prepared_tasks,
  run_tasks,
  task_rows,
)
from vtokens.evaluation.tasks import Task
from vtokens.evaluation.trained_tokens import TrainedTokens
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


# A task as lm-eval has them, on a file of one's own.
YAML = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


def harness_task(tmp_path, kind, more='', **settings):
  rows = [{'question': f'What is {i}?', 'answer': f'{i} x'} for i in range(6)]
  file = tmp_path / f'{kind}.yaml'
  path = write(tmp_path / 'colours.jsonl', rows)
  file.write_text(YAML.format(path=path, kind=kind, more=more))
  return {kind: Task(harness=str(file), **settings)}


def table(base, name='t'):
  rows = np.random.default_rng(0).normal(0, 0.3, (5, 64)).astype(np.float32)
  return TrainedTokens(
    name, rows, Assembler.for_run(base.tokenizer, config.Config())
  )


def run(base, settings, directory, *, tables=None, seed=0, **more):
  prepared = [
    prepared_tasks.prepare(name, task, seed) for name, task in settings.items()
  ]
  prepared_tasks.check_tables(prepared, tables or {})
  return run_tasks.run_tasks(
    base,
    partitioning.make_mesh((-1, 1, 1)),
    prepared,
    tables or {},
    **{
      'model': 'm',
      'seed': seed,
      'batch_size': 4,
      'resamples': 100,
      'directory': directory,
      'stop': stopping.StopRequest(),
      **more,
    },
  )


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_and_predictions(tiny_dir, base, settings, tmp_path):
  facts, truths, sums = run(base, settings, tmp_path)['tasks']
  rows = lines(tmp_path / 'm/facts.jsonl')
  # Each option by itself after the whole prompt, by torch.
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  ).eval()
  [task] = prepared_tasks.prepare('f', settings['facts'], 0).tasks.values()
  encode = base.tokenizer.encode
  scores: dict = {}
  for instance in task.instances:
    prompt, option = map(encode, instance.args)
    with torch.no_grad():
      logs = model(torch.tensor([[*prompt, *option]])).logits.log_softmax(-1)[0]
    at = torch.arange(len(prompt) - 1, len(prompt) + len(option) - 1)
    scores.setdefault(instance.doc['id'], []).append(
      logs[at, torch.tensor(option)].sum().item()
    )
  right = {'sum': [], 'per_token': [], 'per_byte': []}
  for row in rows:
    expected = np.array(scores[row['id']])
    np.testing.assert_allclose(row['log_probabilities'], expected, rtol=1e-4)
    # One token a byte here, and the space before.
    sizes = np.array([len(choice) for choice in row['choices']])
    for name, by in (('sum', 1), ('per_token', sizes + 1), ('per_byte', sizes)):
      pick = row['choices'][np.argmax(expected / by)]
      assert row['predictions'][name] == pick
      right[name].append(pick in row['answers'])
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
  written = lines(tmp_path / 'm/sums.jsonl')
  assert [row['prediction'] for row in written] == [None] * 3
  assert sums['mean_tokens'] == np.mean([row['num_tokens'] for row in written])
  text = general_rows.format_results({'tasks': [facts, truths, sums]})
  assert [line.split()[0] for line in text.splitlines()[1:]] == [*settings]


@pytest.mark.parametrize(('right', 'n'), [(0, 3), (7, 20), (50, 50)])
def test_interval_is_wilsons(settings, right, n):
  task = prepared_tasks.prepare('sums', settings['sums'], 0)
  row = {'prediction': None, 'stop': 'end', 'num_tokens': 1}
  rows = [{**row, 'right': i < right} for i in range(n)]
  z = 1.959963984540054
  p = right / n
  middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  np.testing.assert_allclose(
    task_rows.summary(task, rows)['interval'],
    [100 * (middle - half), 100 * (middle + half)],
    atol=1e-9,
  )


class Killed(Exception):
  """In place of a signal."""


def test_an_interrupted_run_goes_on(base, settings, tmp_path):
  whole = run(base, settings, tmp_path / 'whole')
  out = tmp_path / 'out'
  looks = []

  def kill(number):
    looks.append(number)
    if len(looks) == 4:
      raise Killed
    return number

  with pytest.raises(Killed):
    run(base, settings, out, stop=stopping.StopRequest(kill))
  [log] = out.glob('responses-*.jsonl')
  before = log.read_bytes()
  assert 3 < before.count(b'\n') < 40
  assert run(base, settings, out) == whole
  assert log.read_bytes().startswith(before)
  after = log.read_bytes()
  # Neither the batch size nor the base's name decides a response; files and
  # their places count as content.
  (tmp_path / 'moved').mkdir()
  for task in settings.values():
    for field in ('source', 'shots_source'):
      if path := getattr(task, field):
        setattr(task, field, shutil.copy(path, tmp_path / 'moved'))
  again = run(base, settings, out, batch_size=2, model='other')
  for old, new in zip(whole['tasks'], again['tasks'], strict=True):
    assert new == old | {'source': settings[new['task']].source}
  assert log.read_bytes() == after
  for path in (out / 'm').iterdir():
    assert (out / 'other' / path.name).read_bytes() == path.read_bytes()
  # Other examples are other prompts.
  run(base, settings, out, seed=1)
  assert len(log.read_bytes()) > len(after)


def test_a_table_is_plugged_in(base, settings, tmp_path):
  tables = {'runs/t': table(base)}
  asked = {
    'alone': settings['facts'],
    'with': Task(**{**vars(settings['facts']), 'num_active': 3}),
  }
  alone, plugged = run(base, asked, tmp_path, tables=tables)['tasks']
  assert 'table' not in alone
  assert (plugged['table'], plugged['num_active']) == ('runs/t', 3)
  a, b = (
    [row['log_probabilities'] for row in lines(tmp_path / 'm' / name)]
    for name in ('alone.jsonl', 'with@runs%2Ft.jsonl')
  )
  assert not np.isclose(np.concatenate(a), np.concatenate(b)).any()
  text = general_rows.format_results({'tasks': [alone, plugged]})
  assert 'with, runs/t k=3' in text
  asked['with'].num_active = 6
  with pytest.raises(
    errors.UserError, match=r'\[with\]\.num_active: 6 .* has 5'
  ):
    run(base, asked, tmp_path, tables=tables)


@pytest.mark.parametrize(
  ('kind', 'more', 'metrics'),
  [
    ('loglikelihood', '', ['perplexity', 'acc']),
    (
      'loglikelihood_rolling',
      '',
      ['word_perplexity', 'byte_perplexity', 'bits_per_byte'],
    ),
    (
      'generate_until',
      'generation_kwargs: {until: ["."], max_gen_toks: 5}',
      ['exact_match'],
    ),
    (
      'multiple_choice',
      'doc_to_choice: [0 x, 1 x, 2 x, 3 x, 4 x, 5 x]',
      ['acc', 'acc_norm'],
    ),
  ],
)
def test_tasks_of_lm_eval(base, tmp_path, monkeypatch, kind, more, metrics):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  asked = harness_task(tmp_path, kind, more, max_questions=4)
  found = run(base, asked, tmp_path)
  assert list(found) == ['harness']
  assert [row['metric'] for row in found['harness']] == metrics
  for row in found['harness']:
    assert (row['task'], row['n'], row['shots']) == ('colours', 4, 0)
    assert np.isfinite(row['value'])
    assert row['notes'] == [
      'colours: 4 of 6 questions, drawn by the seed (max_questions)'
    ]
  text = general_rows.format_results(found)
  assert text.splitlines()[1].startswith(f'colours {metrics[0]} ')
  assert run(base, asked, tmp_path) == found


def test_perplexity_is_that_of_the_log_likelihoods(base, tmp_path):
  rows = run(base, harness_task(tmp_path, 'loglikelihood'), tmp_path)
  samples = lines(tmp_path / 'm' / 'loglikelihood.jsonl')
  sums = [sample['filtered_resps'][0][0] for sample in samples]
  perplexity, _ = rows['harness']
  assert perplexity['value'] == pytest.approx(np.exp(-np.mean(sums)))
  assert perplexity['stderr'] > 0


@pytest.mark.parametrize(
  ('harness', 'message'),
  [
    ('nowhere.yaml', r'there is no file nowhere\.yaml'),
    ('no_such_task', r"has no task, tag or group 'no_such_task'"),
  ],
)
def test_names_that_lm_eval_does_not_know(harness, message):
  with pytest.raises(
    errors.UserError, match=r'tasks\[x\]\.harness: .*' + message
  ):
    prepared_tasks.prepare('x', Task(harness=harness), 0)


def test_a_file_of_a_task_that_is_broken(tmp_path):
  asked = harness_task(tmp_path, 'loglikelihood', 'test_split: other')
  with pytest.raises(errors.UserError, match=r'harness: .* cannot be loaded'):
    prepared_tasks.prepare('x', *asked.values(), 0)
  asked = harness_task(tmp_path, 'loglikelihood', 'unsafe_code: true')
  with pytest.raises(errors.UserError, match='runs code that the model wrote'):
    prepared_tasks.prepare('x', *asked.values(), 0)


def test_too_long_for_the_base(base, settings):
  settings['sums'].max_new_tokens = 600
  prepared = [
    prepared_tasks.prepare(name, task, 0) for name, task in settings.items()
  ]
  with pytest.raises(errors.UserError) as e:
    prepared_tasks.check_fits(base, prepared)
  assert str(e.value).startswith('config.tasks[sums]: question 0 has 6')


def test_virtual_tokens_need_runs(settings):
  settings['sums'].num_active = 2
  cfg = eval_config.Config(
    workdir='w',
    base=config.Base(path='b', dtype='float32', quantize='none'),
    conditions=(),
    tasks=settings,
  )
  with pytest.raises(errors.UserError, match=r'runs: .* tasks\[sums\]'):
    eval_config.validate(cfg)
