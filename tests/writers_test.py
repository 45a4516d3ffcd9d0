"""Tests of vtokens.writers."""

import json

import pytest
import tqdm

from vtokens import writers


def test_say_goes_to_stdout_above_a_bar(capsys):
  with tqdm.tqdm(total=2):
    writers.say('one\ntwo')
  captured = capsys.readouterr()
  assert captured.out == 'one\ntwo\n'
  assert '2' in captured.err


def test_write_text_makes_directories(tmp_path):
  path = tmp_path / 'a' / 'b.txt'
  writers.write_text(path, 'Grüße\n')
  writers.write_text(path, 'ß\n')
  assert path.read_bytes() == 'ß\n'.encode()
  assert [p.name for p in path.parent.iterdir()] == ['b.txt']


def test_write_json_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'x.json'
  writers.write_json(path, {'text': 'ä', 'list': [1, None]})
  before = path.read_text(encoding='utf-8')
  assert json.loads(before) == {'text': 'ä', 'list': [1, None]}
  assert 'ä' in before
  with pytest.raises(TypeError):
    writers.write_json(path, {'bad': object()})
  # Half an emoji: the encoder stops in the middle of the file.
  with pytest.raises(UnicodeEncodeError):
    writers.write_text(path, 'start \ud83d')
  assert path.read_text(encoding='utf-8') == before


def test_metrics_round_trip(tmp_path):
  path = tmp_path / 'new' / 'metrics.jsonl'
  assert writers.read_metrics(path) == []
  writer = writers.MetricsWriter(path, 0, 0)
  writer.write(1, {'loss': 1 / 3})
  # Each line can be read while the run goes on.
  assert writers.read_metrics(path) == [{'step': 1, 'loss': 1 / 3}]
  writer.write(2, {'loss': 0.5})
  writer.write(2, {'validation_loss': 0.25})
  writer.close()
  assert writers.read_metrics(path) == [
    {'step': 1, 'loss': 1 / 3},
    {'step': 2, 'loss': 0.5},
    {'step': 2, 'validation_loss': 0.25},
  ]


@pytest.mark.parametrize(
  'step, validated, tail, kept',
  [
    (0, 0, '', []),
    (2, 2, '', [1, 2, -2]),
    (3, 2, '', [1, 2, -2, 3]),
    (9, 9, '', [1, 2, -2, 3]),
    # The checkpoint of step 2 is from before its validation.
    (2, 1, '', [1, 2]),
    # Killed in the middle of a line, and before its line break.
    (9, 9, '{"step": 4, "lo', [1, 2, -2, 3]),
    (9, 9, '{"step": 4, "loss": 4}', [1, 2, -2, 3, 4]),
  ],
)
def test_metrics_go_on_after_a_step(tmp_path, step, validated, tail, kept):
  path = tmp_path / 'metrics.jsonl'
  rows = [
    {'step': 1, 'loss': 1},
    {'step': 2, 'loss': 2},
    {'step': 2, 'validation_loss': -2},
    {'step': 3, 'loss': 3},
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)
  writer = writers.MetricsWriter(path, step, validated)
  writer.write(99, {'loss': 99})
  writer.close()
  values = [
    row.get('loss', row.get('validation_loss'))
    for row in writers.read_metrics(path)
  ]
  assert values == [*kept, 99]
  assert path.read_text().endswith('\n')
