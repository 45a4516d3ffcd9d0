"""Tests of vtokens.retrieval.execute."""

import functools
import pathlib

import pytest

from vtokens.retrieval import execute, retrieval_config

LOOP = retrieval_config.Execution()
BEAM = retrieval_config.Execution(runner='beam')
WORKERS = retrieval_config.Execution(
  runner='beam',
  beam_options=(
    '--runner=DirectRunner',
    '--direct_running_mode=multi_processing',
    '--direct_num_workers=2',
  ),
)


def square(directory, number):
  (directory / f'{number}').write_text(str(number * number))


def add(part, key):
  return part + key


def write(directory, key, total):
  (directory / f'{key}').write_text(str(total))


@pytest.mark.parametrize('execution', [LOOP, BEAM, WORKERS])
def test_each_item_that_is_not_done_is_worked_on(tmp_path, execution):
  (tmp_path / '3').write_text('done')
  execute.for_each(
    execution,
    functools.partial(square, tmp_path),
    range(5),
    lambda number: (tmp_path / f'{number}').exists(),
    'squares',
  )
  assert [pathlib.Path(tmp_path, str(i)).read_text() for i in range(5)] == [
    *('0', '1', '4', 'done', '16')
  ]


@pytest.mark.parametrize('execution', [LOOP, BEAM, WORKERS])
def test_results_of_parts_are_combined(tmp_path, execution):
  (tmp_path / '1').write_text('done')
  execute.map_reduce(
    execution,
    add,
    [10, 20, 30],
    sum,
    functools.partial(write, tmp_path),
    range(3),
    lambda key: (tmp_path / f'{key}').exists(),
    'sums',
  )
  assert [(tmp_path / f'{key}').read_text() for key in range(3)] == [
    *('60', 'done', '66')
  ]


@pytest.mark.parametrize('execution', [LOOP, BEAM])
def test_errors_end_the_work(tmp_path, execution):
  with pytest.raises(Exception, match=r'division by zero'):
    execute.for_each(
      execution, lambda number: 1 / number, [0], lambda _: False, 'x'
    )


def test_progress_counts_what_was_done_before(capsys):
  execute.for_each(
    LOOP, lambda _: None, range(4), lambda number: number < 3, 'work'
  )
  assert 'work: 100%' in capsys.readouterr().err
