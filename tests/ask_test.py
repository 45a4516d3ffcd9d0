"""The serving side of a finished run, on a tiny random base."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from vtokens import ask, config
from vtokens.answering import Completion, answer_file, run
from vtokens.data import formats
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors, locks
from vtokens.models import frozen_base
from vtokens.serving import table_file
from vtokens.settings import schema

N = 4
RECORD = Record(
  id='r',
  dataset='d',
  question='what is is?',
  answers=('yes', 'no'),
  passages={
    'bm25': tuple(
      Passage('', '', f'{word} ' * 5) for word in ('big', 'small', 'odd')
    )
  },
)


def make_config() -> config.Config:
  return config.Config(
    data=config.Data(
      max_prefix_tokens=200, max_suffix_tokens=220, max_answer_tokens=16
    ),
    eval=config.Eval(
      batch_size=4,
      num_passages=2,
      shuffle_passages=True,
      max_new_tokens=6,
      stop_at_newline=False,
      num_active=(N,),
    ),
  )


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return partitioning.make_mesh((-1, 1, 1))


@pytest.fixture(scope='module')
def base(tiny_dir, mesh) -> frozen_base.FrozenBase:
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'), mesh
  )


@pytest.fixture(scope='module')
def table(base) -> TrainedTokens:
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(N, base.config.embed_dim)).astype(np.float32)
  return TrainedTokens(
    'a', rows, Assembler.for_run(base.tokenizer, make_config())
  )


@pytest.fixture(scope='module')
def workdir(base, table, tiny_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  cfg = make_config()
  cfg.base = config.Base(path=str(tiny_dir), dtype='float32')
  cfg.virtual_tokens.num_virtual_tokens = N
  cfg.virtual_tokens.num_active = N
  cfg.data.train = ('unused.jsonl',)
  values = schema.to_dict(cfg)
  del values['workdir']
  (path / 'config.json').write_text(json.dumps(values))
  table_file.save(
    path / 'table.safetensors', table.values, {'fingerprint': base.fingerprint}
  )
  return path


def assert_same(reply: Completion, expected: Answer) -> None:
  assert (reply.text, reply.stop) == (expected.text, expected.stop)
  assert reply.completion_tokens == expected.num_tokens
  assert reply.shown == expected.shown
  assert reply.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_answers_as_the_evaluator_does(workdir, base, mesh, table):
  texts = [passage.text for passage in RECORD.passages['bm25']]
  replies = ask.ask(str(workdir), RECORD.question, texts)
  assert list(replies) == [
    'without passages',
    'with an instruction',
    'instruction, chat template',
    f'with {N} virtual tokens',
  ]
  # The run showed them shuffled; who asks gives them an order.
  decode = make_config().eval
  decode.shuffle_passages = False
  decode.num_passages = 3
  prompter = Prompter(table.assembler, decode, seed=0)
  evaluator = Evaluator(Answerer(base, mesh, decode, 0), prompter)
  variants = [bare_variant('prompt'), tokens_variant(table, N)]
  expected = evaluator.answers([RECORD], variants, label='')
  assert_same(replies['with an instruction'], expected['prompt'][0])
  assert_same(replies[f'with {N} virtual tokens'], expected[f'tokens_k{N}'][0])


def test_tokens_stand_where_they_were_trained(
  workdir, base, mesh, table, tmp_path
):
  other = tmp_path / 'last'
  shutil.copytree(workdir, other)
  values = json.loads((other / 'config.json').read_text())
  values['virtual_tokens']['position'] = 'last'
  (other / 'config.json').write_text(json.dumps(values))
  replies = ask.ask(str(other), RECORD.question, [])
  label = f'with {N} virtual tokens'
  usual = ask.ask(str(workdir), RECORD.question, [])[label]
  assert replies[label].ids != usual.ids
  moved = dataclasses.replace(table.assembler, position='last')
  variant = tokens_variant(dataclasses.replace(table, assembler=moved), N)
  decode = make_config().eval
  answerer = Answerer(base, mesh, decode, 0)
  evaluator = Evaluator(answerer, Prompter(moved, decode, 0))
  bare = dataclasses.replace(RECORD, passages={})
  [expected] = evaluator.answers([bare], [variant], label='')[variant.name]
  assert_same(replies[label], expected)


def test_a_run_on_a_quantised_base(workdir, tmp_path):
  """Is asked on just that."""
  other = tmp_path / 'int4'
  shutil.copytree(workdir, other)
  values = json.loads((other / 'config.json').read_text())
  values['base']['quantize'] = 'int4'
  (other / 'config.json').write_text(json.dumps(values))
  base = run.load(other).engine.base
  assert base.quantize == 'int4'
  assert base.decoder().layers.mlp.gate.values.dtype == 'int4'


def test_fewer_tokens(workdir):
  replies = ask.ask(str(workdir), 'what?', ['big'], 1)
  assert 'with 1 virtual tokens' in replies


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_active': 0}, r'--num_active=0: expected .* from 1 to 4'),
    ({'num_active': N + 1}, r'--num_active=5: expected .* from 1 to 4'),
    ({'num_active': True}, r'--num_active=True: expected .* from 1 to 4'),
    ({'num_active': 2.0}, r'--num_active=2.0: expected .* from 1 to 4'),
    ({'question': ' '}, '--question'),
    ({'question': None}, '--question: expected a text, got None'),
    ({'question': 'half \ud83d'}, '--question: character 5 is half'),
    ({'passages': 'big'}, "passages: expected a list .*, got str 'big'"),
    ({'passages': ['big', None]}, r'passages\[1\]: expected a text'),
    ({'passages': ['\udcff']}, r'passages\[0\]: character 0 is half'),
    (
      {'question': 'q' * 300},
      r'do not fit config\.data\.max_suffix_tokens=220',
    ),
  ],
)
def test_bad_input(workdir, change, message):
  arguments = {
    'question': 'what?',
    'passages': ['big'],
    'num_active': None,
    **change,
  }
  with pytest.raises(errors.UserError, match=message):
    ask.ask(str(workdir), **arguments)


def test_no_run_there(tmp_path):
  with pytest.raises(errors.UserError, match=r'--workdir: .* no finished run'):
    ask.ask(str(tmp_path), 'what?', [])


@pytest.mark.parametrize('width', [1, 31, 128])
def test_a_table_of_another_width(workdir, table, tmp_path, width):
  """Though it names this base."""
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text((workdir / 'config.json').read_text())
  _, metadata = table_file.load(workdir / 'table.safetensors')
  rows = np.zeros((len(table.values), width), np.float32)
  table_file.save(other / 'table.safetensors', rows, metadata)
  with pytest.raises(errors.UserError, match=f', {width}., expected a width'):
    ask.ask(str(other), 'what?', ['big'])


def test_another_base(workdir, table, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text((workdir / 'config.json').read_text())
  table_file.save(
    other / 'table.safetensors', table.values, {'fingerprint': 'f' * 64}
  )
  with pytest.raises(errors.UserError, match='another base'):
    ask.ask(str(other), 'what?', ['big'])


@pytest.fixture(scope='module')
def loaded(workdir):
  return run.load(workdir)


@pytest.fixture
def say(loaded, monkeypatch, capsys):
  """Runs the program with the base loaded once; returns what it wrote."""
  monkeypatch.setattr(run, 'load', lambda *args, **kwargs: loaded)

  def call(*arguments, lines=()):
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(lines)))
    with flagsaver.flagsaver():
      flags.FLAGS(['ask', '--workdir=x', *arguments])
      ask.main([])
    return capsys.readouterr()

  return call


def test_one_question(say, loaded):
  text, details = say('--question=what?', '--passage=big').out.splitlines()
  expected = loaded.answer('what?', ['big'])
  assert text == expected.text
  assert f'confidence {expected.confidence:.2f}; ' in details
  assert '1 of 1 passages' in details


def test_json(say, loaded):
  row = json.loads(say('--question=what?', '--json', '--num_active=2').out)
  expected = loaded.answer('what?', k=2)
  assert (row['answer'], row['tokens']) == (expected.text, len(expected.ids))
  row = json.loads(say('--question=what?', '--json', '--compare').out)
  assert list(row['answers']) == [
    'closed_book',
    'prompt',
    'chat_prompt',
    'tokens',
  ]
  assert row['answers']['tokens']['answer'] == loaded.answer('what?').text


def test_compare(say, loaded):
  lines = say('--question=what?', '--passage=big', '--compare').out.splitlines()
  assert len(lines) == 5
  assert lines[-1].startswith(f'with {N} virtual tokens')
  assert lines[-1].endswith(loaded.answer('what?', ['big']).text)


def test_a_session(say, loaded, tmp_path):
  file = tmp_path / 'passages.txt'
  file.write_text('One\nline.\n\n\nAnother.\n')
  found = say(
    '--json',
    lines=[
      'what?',
      '/k 2',
      '/passages ' + str(file),
      '/passage More.',
      'who?',
      '/nothing',
      '/k 9',
      '',
      '/k all',
      '/clear',
      'what?',
      '/compare',
      '/quit',
      'never asked?',
    ],
  )
  rows = [json.loads(line) for line in found.out.splitlines() if line[0] == '{']
  assert [row['question'] for row in rows] == [
    'what?',
    'who?',
    'what?',
    'what?',
  ]
  passages = ['One\nline.', 'Another.', 'More.']
  assert rows[0]['answer'] == loaded.answer('what?').text == rows[2]['answer']
  assert rows[1]['answer'] == loaded.answer('who?', passages, 2).text
  assert [p['text'] for p in rows[1]['passages']] == passages
  assert rows[2]['passages'] == []
  assert rows[3]['answers']['tokens']['answer'] == rows[2]['answer']
  errors_said = found.err.splitlines()
  assert [line for line in errors_said if '/nothing: no such command' in line]
  assert [line for line in errors_said if '/k =9: expected' in line]


def test_a_session_streams(say, loaded):
  found = say('--passage=big', lines=['what?']).out
  assert found.startswith(
    loaded.answer('what?', ['big']).text + '\n(confidence'
  )


def test_a_file(say, loaded, tmp_path):
  source, target = tmp_path / 'q.jsonl', tmp_path / 'a.jsonl'
  rows = [
    {'id': i, 'question': f'{i}?', 'passages': ['big'] * (i % 2)}
    for i in range(5)
  ]
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  arguments = [f'--input={source}', f'--output={target}']
  say(*arguments)
  whole = target.read_text()
  found = [json.loads(line) for line in whole.splitlines()]
  assert [row['id'] for row in found] == [0, 1, 2, 3, 4]
  for row, one in zip(rows, found, strict=True):
    expected = loaded.answer(row['question'], row['passages'])
    assert (one['answer'], one['stop']) == (expected.text, expected.stop)
  assert not target.with_name('a.jsonl.unfinished').exists()
  with pytest.raises(errors.UserError, match='exists already'):
    say(*arguments)


def test_records_of_a_teacher(say, loaded, tmp_path):
  """What the run answers is read as training records."""
  source, target = tmp_path / 'q.jsonl', tmp_path / 'records.jsonl'
  given = [{'id': 'p1', 'title': 'T', 'text': 'big'}, {'text': 'small'}]
  rows = [
    {'id': 'a', 'question': 'what?', 'passages': given, 'answers': ['human']},
    {'id': 'b', 'question': 'who?', 'k': 2},
  ]
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  arguments = [f'--input={source}', f'--output={target}', '--passage=known']
  say(*arguments, '--records')
  expected = [
    loaded.answer('what?', given).text,
    loaded.answer('who?', ['known'], 2).text,
  ]
  written = [json.loads(line) for line in target.read_text().splitlines()]
  assert [row['answers'] for row in written] == [[text] for text in expected]
  first, second = formats.read_records(
    [str(target)], report=formats.BadRecords()
  )
  assert (first.id, second.id) == ('a', 'b')
  assert len(first.answers) == len(second.answers) == 1
  [shown] = first.passages.values()
  assert [(p.id, p.title, p.text) for p in shown] == [
    ('p1', 'T', 'big'),
    ('', '', 'small'),
  ]
  [shown] = second.passages.values()
  assert [p.text for p in shown] == ['known']


def test_a_file_goes_on_after_a_kill(say, tmp_path, monkeypatch):
  """Killed in its second batch, while a line was written."""
  source, target = tmp_path / 'q.jsonl', tmp_path / 'a.jsonl'
  unfinished = target.with_name('a.jsonl.unfinished')
  rows = [{'question': f'{i}?'} for i in range(5)]
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  arguments = [f'--input={source}', f'--output={target}']
  finish = answer_file.writers.write_bytes

  def killed(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(answer_file.writers, 'write_bytes', killed)
    with pytest.raises(KeyboardInterrupt):
      say(*arguments)
  head, *lines = unfinished.read_text().splitlines(keepends=True)
  assert len(lines) == 5
  unfinished.write_text(head + ''.join(lines[:2]) + lines[2][:10])
  monkeypatch.setattr(answer_file.writers, 'write_bytes', finish)
  with locks.locked_file(unfinished):
    with pytest.raises(errors.UserError, match='another program is writing'):
      say(*arguments)
  assert '2 answers were there before' in say(*arguments).out
  again = [json.loads(line) for line in target.read_text().splitlines()]
  before = [json.loads(line) for line in lines]
  for row in (*again, *before):
    del row['seconds'], row['confidence']
  assert again == before
  # Of other settings, or another input.
  target.unlink()
  unfinished.write_text(head + lines[0])
  with pytest.raises(errors.UserError, match=r'other values of k; .*delete'):
    say(*arguments, '--num_active=1')
  biased = {**json.loads(head), 'refusal_bias': 1.0}
  unfinished.write_text(json.dumps(biased) + '\n' + lines[0])
  with pytest.raises(errors.UserError, match='other values of refusal_bias; '):
    say(*arguments)
  unfinished.write_text(head + lines[0])
  source.write_text('{"question": "x?"}\n')
  with pytest.raises(errors.UserError, match='other values of input; '):
    say(*arguments)
  source.write_text('{"question": "x?"}\n{"question": " "}\n')
  unfinished.unlink()
  with pytest.raises(errors.UserError, match=r'q\.jsonl:2: question'):
    say(*arguments)
  # Also the last line, which need not have a line break.
  source.write_text('{"question": "x?"}\n{"qestion": "y?"}')
  with pytest.raises(errors.UserError, match=r'q\.jsonl:2: question is miss'):
    say(*arguments)
  assert not unfinished.exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--input=q.jsonl'], '--input and --output'),
    (['--question=a?', '--records'], '--records: expected --input'),
    (['--question= '], '--question: expected a text that is not blank'),
    (['--question=a?', '--index=x', '--passage=y'], '--index finds'),
    (['--question=a?', '--index=nowhere'], 'nowhere: holds no corpus'),
    (['--question=a?', '--encoder=x'], '--encoder: expected --index'),
    (['--question=a?', '--passages=nowhere'], 'nowhere: cannot be read'),
    (['--compare'], '--compare: expected --question'),
    (['--question=a?', '--num_active=9'], '--num_active=9'),
  ],
)
def test_bad_flags(say, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    say(*arguments)
