"""Cells, report and adapters of `benchmarks/answer_quality.py`."""

import dataclasses
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import quality_answers
import quality_cells
import quality_report
import quality_runs
import quality_settings
import quality_training
import tiny_run
from quality_cells import Task

from vtokens.data.batch import Batch
from vtokens.data.records import Record
from vtokens.host import errors

_PROGRAM = pathlib.Path(quality_runs.__file__).with_name('answer_quality.py')


def _task(root, **changes):
  return Task(
    **{
      'work': str(root / 'work'),
      'results': str(root / 'results'),
      'setting': 'tiny',
      'contender': 'table',
      'rate': 1e-2,
      'seed': 0,
      'steps': 6,
      'validations': 2,
      'validation_questions': 0,
      'test_questions': 0,
      **changes,
    }
  )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tiny_run.make_place(tmp_path_factory.mktemp('place'))


@pytest.fixture
def settings(place, monkeypatch):
  """Adds the setting `tiny`."""

  def tiny(task):
    cfg = place.load(
      task.directory,
      train={'num_steps': task.steps},
      optim={'learning_rate': task.rate or 1.0},
      eval={'num_passages': task.passages or 2},
    )
    cfg.data.examples_per_row = 2
    # A second shape for rows with many virtual tokens.
    cfg.data.shapes = ((96, 34), (96, 64))
    cfg.seed = task.seed
    contender = quality_cells.CONTENDERS[task.contender]
    if contender.kind:
      cfg.virtual_tokens.kind = contender.kind
    if contender.twice:
      cfg.virtual_tokens.draws_per_example = 2
      cfg.virtual_tokens.always_all = True
      cfg.data.shapes = ((96, 128),)
    return cfg

  monkeypatch.setattr(quality_settings, 'SETTINGS', {'tiny': tiny})


def _validated(root, losses):
  """Cells of the table with these validation losses, by rate."""
  found = []
  for rate, loss in losses.items():
    task = _task(root, rate=rate)
    if loss is not None:
      task.at('validate').write({'validations': [{'loss': loss}]})
    found.append(task)
  return found


def test_the_best_rate_has_the_lowest_loss(tmp_path):
  sweep = _validated(tmp_path, {1e-2: 2.0, 3e-3: 1.5, 3e-2: 1.7})
  assert quality_cells.best(sweep).rate == 3e-3


def test_there_is_no_best_rate_before_all_are_validated(tmp_path):
  sweep = _validated(tmp_path, {1e-2: 2.0, 3e-3: None})
  assert quality_cells.best(sweep) is None


def test_rates_that_no_contender_has_are_refused():
  check = quality_cells.check_rates
  check(['prompt', 'table', 'lora_qv'], [])
  check(['prompt', 'table', 'lora_qv'], [2e-2, 1e-3])
  for contenders, rates in (
    (['prompt', 'table'], [2e-2, 0.7]),
    (['table', 'lora_qv'], [2e-2]),
    (['prompt'], [2e-2]),
  ):
    with pytest.raises(errors.UserError, match=r'--rates: .* has '):
      check(contenders, rates)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--contenders=tabel', '--contenders: unknown: tabel; expected some of pr'),
    ('--stages=tran', '--stages: unknown: tran; expected some of train'),
    ('--rates=x', "--rates: could not convert string to float: 'x'"),
  ],
)
def test_flags_that_name_nothing_are_refused(flag, message, tmp_path):
  done = subprocess.run(
    [sys.executable, _PROGRAM, flag, f'--work={tmp_path}'],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert message in done.stderr and 'Traceback' not in done.stderr


def test_a_stage_with_a_result_is_not_run_again(tmp_path, monkeypatch):
  started = []

  def run(command):
    started.append(command)
    # The process ends without a result, as when it is killed.
    return subprocess.CompletedProcess(command, -9)

  monkeypatch.setattr(subprocess, 'run', run)
  done, missing = _task(tmp_path), _task(tmp_path, seed=1)
  done.write({'losses': []})
  quality_runs.measure(done)
  assert not started
  # A validation needs what was trained: it is trained again.
  with pytest.raises(errors.UserError, match='seed 0: train'):
    quality_runs.measure(done.at('validate'))
  assert '"stage": "train"' in started.pop()[-1]
  for _ in range(2):
    with pytest.raises(errors.UserError, match=r'seed 1: train.*-9'):
      quality_runs.measure(missing)
  assert len(started) == 2


def test_a_result_of_other_settings_is_refused(tmp_path):
  _task(tmp_path).write({'losses': []})
  assert _task(tmp_path).read()['losses'] == []
  # A training does not depend on the questions of the validation.
  assert _task(tmp_path, validation_questions=7).read() is not None
  with pytest.raises(errors.UserError, match=r'train\.json.*other(.|\n)*steps'):
    _task(tmp_path, steps=7).read()


def test_fewer_validation_questions_leave_the_training_as_it_is(tmp_path):
  asked = [
    Record(str(i), name, question='?', answers=('x',), passages={})
    for name in quality_settings.SEVEN
    for i in range(15)
  ]
  setting = types.SimpleNamespace(validation=asked)
  task = _task(tmp_path, setting='seven', validation_questions=20)
  found = quality_settings.validation(task, setting)
  assert [(r.dataset, r.id) for r in found] == [
    (name, i) for name in quality_settings.SEVEN for i in '01'
  ]
  for number in (6, 106):
    task = _task(tmp_path, setting='seven', validation_questions=number)
    with pytest.raises(errors.UserError, match=f'={number}: expected 7 to 105'):
      quality_settings.validation(task, setting)


def test_other_examples_are_refused(tmp_path):
  table, lora = _task(tmp_path), _task(tmp_path, contender='lora_qv')
  same = {'examples_sha256': 'a'}
  other = {'examples_sha256': 'b'}
  quality_cells.check_same(
    [(table, same), (lora, same), (_task(tmp_path, seed=1), other)]
  )
  with pytest.raises(errors.UserError, match=r'lora_qv.*other examples'):
    quality_cells.check_same([(table, same), (lora, other)])


def test_the_share_is_of_the_means_of_the_sets():
  rng = np.random.default_rng(0)
  prompt, table, lora = (
    [(rng.random(n) < p).astype(float) for n in (40, 160)]
    for p in (0.1, 0.4, 0.5)
  )
  share, low, high = quality_report.share_of_gain(prompt, table, lora)
  means = [
    np.mean([group.mean() for group in groups])
    for groups in (prompt, table, lora)
  ]
  expected = 100 * (means[1] - means[0]) / (means[2] - means[0])
  assert share == pytest.approx(expected)
  assert low < share < high


def test_the_share_is_paired_by_question():
  rng = np.random.default_rng(1)
  lora = [(rng.random(100) < 0.5).astype(float)]
  prompt = [np.zeros(100)]
  # The resamples of both have the same questions.
  found = quality_report.share_of_gain(prompt, lora, lora)
  assert found == pytest.approx((100, 100, 100))


def test_the_share_without_a_gain_is_unknown():
  one = [np.ones(5)]
  assert np.isnan(quality_report.share_of_gain(one, one, one)).all()


def test_questions_must_be_the_same():
  with pytest.raises(ValueError, match='sizes'):
    quality_report.share_of_gain([np.ones(5)], [np.ones(4)], [np.ones(5)])


def _tested(
  root, contender, right, seed=0, *, k='0', loss=1.0, rate=0.0, questions='q'
):
  """A cell with the answers to two questions of one set, one of another."""
  task = _task(root, contender=contender, rate=rate, seed=seed)
  task.write(
    {
      'trained_numbers': 7,
      'seconds': 120.0,
      'cpu_seconds': 60.0,
      'snapshots': [{'step': 6, 'seconds': 120.0, 'cpu_seconds': 60.0}],
      'peak_bytes_of_process': 2**30,
      'peak_bytes_above_weights': 2**29,
    }
  )
  task.at('validate').write(
    {
      'validations': [{'step': 6, 'loss': loss, 'em': 50.0, 'f1': 60.0}],
      'questions': 3,
      'versions': {},
    }
  )
  if right is not None:
    values = {'em': right, 'f1': right}
    task.at('test', 2).write(
      {
        'datasets': ['a', 'a', 'b'],
        'examples_sha256': questions,
        'condition': 'tokens',
        'k': {k: values},
        'versions': {},
      }
    )
  return task


def test_a_setting_is_summed_up(tmp_path):
  prompt = _tested(tmp_path, 'prompt', [0.0, 0.0, 0.0])
  lora = _tested(tmp_path, 'lora_qv', [1.0, 1.0, 1.0])
  table = _tested(tmp_path, 'table', [1.0, 0.0, 1.0], k='50', rate=1e-2)
  _tested(tmp_path, 'table', [0.0, 0.0, 1.0], 1, k='50', rate=1e-2)
  worse = _tested(tmp_path, 'table', [1.0, 1.0, 1.0], rate=3e-3, loss=2.0)
  missing = _task(tmp_path, rate=3e-2)
  found = quality_report.summarise(
    {
      'prompt': [prompt],
      'table': [table, worse, missing],
      'lora_qv': [lora],
    },
    [0, 1],
    [2, 5],
  )
  rows = {row['contender']: row for row in found['rows']}
  assert rows['table']['rate'] == 1e-2
  assert rows['table']['rates_tried'] == 2
  assert rows['table']['seeds'] == [0, 1]
  # The mean of both seeds in each set, then of the sets: (1/4 + 1) / 2.
  assert rows['table']['em'] == pytest.approx(62.5)
  assert rows['table']['share'][0] == pytest.approx(62.5)
  assert rows['table']['cpu_minutes_to_90'] == 1
  assert 'share' not in rows['prompt']
  assert 'share' not in rows['lora_qv']
  assert '| 62 % [' in quality_report.table(found['rows'])
  assert [row['rate'] for row in found['sweep']] == [1e-2, 3e-3, 0]


def test_tests_with_other_questions_are_not_compared(tmp_path):
  sweeps = {
    name: [_tested(tmp_path, name, [1.0, 1.0, 1.0], questions=questions)]
    for name, questions in (('table', 'q'), ('lora_qv', 'other'))
  }
  with pytest.raises(errors.UserError, match=r'lora_qv.*test_2\.json.*other'):
    quality_report.summarise(sweeps, [0], [2])


def test_the_time_to_reach_most_of_the_final_score():
  validations = [
    {'step': step, 'em': em} for step, em in ((2, 10), (4, 36), (6, 40))
  ]
  snapshots = [{'step': step, 'seconds': 10.0 * step} for step in (2, 4, 6)]
  reached = quality_report.time_to_reach(validations, snapshots, 'seconds')
  assert reached == 40
  assert (
    quality_report.time_to_reach([{'step': 2, 'em': 0}], snapshots, 'seconds')
    is None
  )


def test_examples_of_packed_rows_lose_their_virtual_tokens():
  # Two examples in a row: ids 1 2 | V V 3, answer 4 5; and 6 | V 7, answer 8.
  batch = Batch(
    prefix=np.array([[1, 2, 6, 0]]),
    prefix_positions=np.array([[0, 1, 0, -1]]),
    prefix_segments=np.array([[0, 0, 1, -1]]),
    suffix=np.array([[100, 101, 3, 4, 100, 7, 0]]),
    suffix_positions=np.array([[2, 3, 4, 5, 1, 2, -1]]),
    suffix_segments=np.array([[0, 0, 0, 0, 1, 1, -1]]),
    targets=np.array([[4, 5, 8, 0]]),
    target_index=np.array([[2, 3, 5, -1]]),
  )
  found = list(quality_settings.plain_examples(batch, 100))
  assert [(ids.tolist(), answer) for ids, answer in found] == [
    ([1, 2, 3, 4, 5], 2),
    ([6, 7, 8], 1),
  ]


def test_an_example_with_several_suffixes_is_one():
  # Ids 1 2 | V V 3, answer 4 5; the same | V 3, answer 4 5; 6 | V 7, answer 8;
  # 6 | V V 7, answer 8.
  batch = Batch(
    prefix=np.array([[1, 2, 6]]),
    prefix_positions=np.array([[0, 1, 0]]),
    prefix_segments=np.array([[0, 0, 1]]),
    suffix=np.array([[100, 101, 3, 4, 100, 3, 4, 100, 7, 100, 101, 7]]),
    suffix_positions=np.array([[2, 3, 4, 5, 2, 3, 4, 1, 2, 1, 2, 3]]),
    suffix_segments=np.array([[0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]]),
    suffix_parents=np.array([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]),
    targets=np.array([[4, 5, 4, 5, 8, 8]]),
    target_index=np.array([[2, 3, 5, 6, 8, 11]]),
  )
  found = list(quality_settings.plain_examples(batch, 100))
  assert [(ids.tolist(), answer) for ids, answer in found] == [
    ([1, 2, 3, 4, 5], 2),
    ([6, 7, 8], 1),
  ]


def _sequence(batches, vocab_size):
  with batches.starting_at(0) as stream:
    return [
      [
        (ids.tolist(), answer)
        for ids, answer in quality_settings.plain_examples(
          next(stream).batch, vocab_size
        )
      ]
      for _ in range(12)
    ]


@pytest.mark.parametrize('contender', ['kv', 'table_twice', 'kv_twice'])
def test_contenders_have_the_examples_of_the_table_in_its_order(
  contender, settings, tmp_path
):
  table, task = _task(tmp_path), _task(tmp_path, contender=contender)
  setting = quality_settings.open_setting(table)
  other = quality_settings.open_setting(task)
  vocab_size = setting.opened.config.vocab_size
  expected = _sequence(
    quality_settings.open_batches(table, setting), vocab_size
  )
  # The lengths of suffixes decide the order of batches.
  assert _sequence(other.batches(), vocab_size) != expected
  same = quality_settings.open_batches(task, other)
  assert _sequence(same, vocab_size) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
  'contender', ['lora_all', 'prompt_tuning', 'prefix_tuning']
)
def test_the_evaluator_has_the_loss_of_peft(contender, settings, tmp_path):
  task = _task(tmp_path, contender=contender, rate=0.3)
  quality_runs.run_stage(task)
  quality_runs.run_stage(task.at('validate'))
  before = task.at('validate').read()['validations'][-1]['loss']
  # A loss that PEFT does not have is noticed.
  trained = task.read()
  task.write({**trained, 'check_nll': trained['check_nll'] + 1e-3})
  with pytest.raises(errors.UserError, match=r'was .* in PEFT'):
    quality_answers.validate(task.at('validate'))
  # What was trained decides the loss: the check could fail.
  path = quality_training.snapshot_path(task, task.steps)
  path.write_bytes(quality_training.snapshot_path(task, 3).read_bytes())
  task.write({**trained, 'check_nll': None})
  changed = quality_answers.validate(task.at('validate'))
  assert abs(changed['validations'][-1]['loss'] - before) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
  ('contender', 'numbers'),
  # A table row; keys and values of two layers.
  [('table', tiny_run.DIM), ('kv', 2 * 2 * 2 * 8)],
)
def test_ours_are_trained_validated_and_tested(
  contender, numbers, settings, tmp_path
):
  task = _task(tmp_path, contender=contender)
  prompt = dataclasses.replace(task, contender='prompt', rate=0.0)
  for stage in (
    task,
    task.at('validate'),
    task.at('test', 2),
    prompt.at('validate'),
    prompt.at('test', 2),
  ):
    quality_runs.run_stage(stage)
  found = quality_report.summarise(
    {'prompt': [prompt], contender: [task]}, [0, 1], [2]
  )
  rows = {(row['contender'], row['k']): row for row in found['rows']}
  assert set(rows) == {('prompt', 0), (contender, 1)}
  assert rows[contender, 1]['trained_numbers'] == 4 * numbers
  assert rows[contender, 1]['seeds'] == [0]
  assert 'PEFT' not in quality_report.table(found['rows'])
