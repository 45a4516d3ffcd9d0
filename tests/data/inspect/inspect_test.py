"""Tests of `python -m vtokens.data.inspect`.

Tokens are bytes here: a text has as many tokens as characters.
"""

import collections
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import tiny_models
import transformers

from vtokens import config
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.inspect import example_pieces, example_stats, printable_ids
from vtokens.models.tokenizers.tokenizer import load_tokenizer

_ROOT = pathlib.Path(__file__).parents[3]
_CONFIG = """
from vtokens import config

ROOT = {root!r}


def get_config(kind='plain'):
  cfg = config.Config(
    workdir=ROOT + '/run',
    base=config.Base(path=ROOT + '/base'),
    virtual_tokens=config.VirtualTokens(num_virtual_tokens=8),
    data=config.Data(
      train=(ROOT + '/train.jsonl',),
      validation=(ROOT + '/validation.jsonl',),
      test=(ROOT + '/test.jsonl',),
      on_bad_record='skip',
      token_cache=ROOT + '/tokens',
      passages=config.Passages(number=(2, 3)),
      mixture=config.Mixture(max_examples={{'alpha': 8}}),
      batch_size=4,
      max_prefix_tokens=70,
      max_suffix_tokens=60,
      max_answer_tokens=12,
      window_batches=4,
    ),
    optim=config.Optim(warmup_steps=5),
    train=config.Train(num_steps=30),
    eval=config.Eval(
      num_active=(1, 8), num_passages=2, retriever='bm25', max_new_tokens=4
    ),
  )
  if kind == 'packed':
    cfg.templates.chat = True
    cfg.virtual_tokens.draw = 'per_batch'
    cfg.data.examples_per_row = 2
    cfg.data.max_suffix_tokens = 120
    cfg.data.passages.distractors = 0.5
    cfg.data.passages.none = 0.2
  if kind == 'drawn':
    cfg.virtual_tokens.draws_per_example = 2
    cfg.data.examples_per_row = 2
  return cfg
"""


def train_record(dataset: str, i: int) -> dict:
  return {
    'id': f'{dataset}-{i}',
    'dataset': dataset,
    'question': f'Which of {dataset} {i}?',
    'answers': [f'word{i}'] if dataset != 'beta' or i < 4 else ['x' * 50],
    'passages': {
      'bm25': [
        {'id': f'{dataset}{i}.{j}', 'text': f'Text {j} of {dataset}{i}{more}'}
        for j, more in enumerate([f', word{i}.', '.' * 30, '.'])
      ],
      'gold': [{'id': f'{dataset}{i}.2', 'text': f'Text 2 of {dataset}{i}.'}],
    },
  }


TRAIN = [train_record('alpha', i) for i in range(12)] + [
  train_record('beta', i) for i in range(6)
]
# Two of them ask a question of alpha; one asks a question of beta whose answer
# is also too long.
VALIDATION = [
  {**train_record(name, i), 'id': f'v{i}', 'dataset': 'held', 'answers': ['of']}
  for name, i in (('alpha', 3), ('alpha', 7), ('beta', 5))
]
TEST = [{**train_record('gamma', i), 'answers': ['one', 'two']} for i in (1, 2)]


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('inspect')
  tiny_models.save_tokenizer(root / 'base')
  # There are no weights: inspecting data does not need them.
  transformers.LlamaConfig(
    vocab_size=tiny_models.VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
  ).save_pretrained(root / 'base')
  (root / 'tiny.py').write_text(_CONFIG.format(root=str(root)))
  for name, rows in (
    ('train', [*TRAIN, {'question': '', 'answers': ['a']}]),
    ('validation', VALIDATION),
    ('test', TEST),
  ):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (root / f'{name}.jsonl').write_text(text)
  return root


def command(*args: str, **environment: str) -> subprocess.CompletedProcess:
  kept = {
    name: value
    for name, value in os.environ.items()
    if name not in ('NO_COLOR', 'FORCE_COLOR', 'CLICOLOR_FORCE')
  }
  return subprocess.run(
    [sys.executable, '-m', 'vtokens.data.inspect', *args],
    capture_output=True,
    text=True,
    encoding='utf-8',
    cwd=_ROOT,
    env={**kept, 'COLUMNS': '120', 'PYTHONPATH': str(_ROOT), **environment},
  )


def run(*args: str, **environment: str) -> str:
  done = command(*args, **environment)
  assert done.returncode == 0, done.stderr
  # Rows of tables are padded.
  return ''.join(f'{x.rstrip()}\n' for x in done.stdout.splitlines())


def examples_of(printed: str) -> list[str]:
  """The text of each example."""
  examples = re.split(r'Example \d+ of \d+ .*\n', printed)[1:]
  examples[-1] = re.split(r'Training data|Records by', examples[-1])[0]
  return examples


def assert_picture(path: pathlib.Path):
  image = matplotlib.image.imread(path)
  assert image.shape[0] > 300 and image.shape[1] > 700
  # Something is drawn.
  assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.fixture(scope='module')
def printed(root) -> str:
  """All examples of two steps."""
  return run(f'--config={root}/tiny.py', '--examples=8', '--step=2')


def test_every_example_is_shown_with_its_pieces(printed):
  assert '\x1b' not in printed  # Not a terminal.
  by_id = {row['id']: row for row in TRAIN}
  examples = examples_of(printed)
  assert len(examples) == 8
  for number, text in enumerate(examples):
    found = re.search(
      r'(\w+) · id (\S+) · step (\d), row (\d) of 4 · '
      r'prefix (\d+) \+ suffix (\d+) tokens',
      text,
    )
    row = by_id[found[2]]
    assert found[1] == row['dataset']
    assert (int(found[3]), int(found[4])) == (2 + number // 4, 1 + number % 4)
    k = int(re.search(r' virtual +tokens 1 to (\d) of 8\n', text)[1])
    question = f'Question: {row["question"]}\nAnswer:'
    assert re.search(rf' prompt +{len(question)} tokens\n', text)
    assert f'Question: {row["question"]}↵\n' in text
    answer = f' {row["answers"][0]}'
    assert re.search(rf' answer +{len(answer) + 1} tokens\n', text)
    assert f'␣{row["answers"][0]}⟨eos⟩' in text
    assert int(found[6]) == k + len(question) + len(answer)
    shown = prefix = 0
    for match in re.finditer(
      r' passage (\d) +bm25 rank (\d)( · gold)? · '
      r'(contains an answer|no answer in it)'
      r'(?: · (\d+) tokens| · CUT to the first (\d+) of (\d+) tokens)\s*\n'
      r'((?: {13}.*\n)+)',
      text,
    ):
      shown += 1
      at, rank = int(match[1]), int(match[2])
      body = ' ' + row['passages']['bm25'][rank - 1]['text']
      assert at == shown
      assert bool(match[3]) == (rank == 3)
      assert (match[4] == 'contains an answer') == (rank == 1)
      lines = [line[13:].rstrip() for line in match[8].splitlines()]
      if match[5]:
        assert lines == [f'[{at}]{body}' + '↵' * len(match[8].split('↵')[1:])]
        prefix += int(match[5])
      else:
        # The body may include the line break at its end.
        assert len(body) <= int(match[7]) <= len(body) + 1
        assert lines[0].startswith(f'[{at}]{body[: int(match[6])]}')
    assert shown >= 1
    dropped = re.findall(r' dropped +bm25 rank \d.* tokens did not fit', text)
    assert shown + len(dropped) in (2, 3)
    if 'CUT' not in text:
      assert prefix == int(found[5])
  # Three passages do not fit into 70 tokens.
  assert 'CUT to the first' in printed and 'did not fit' in printed


def test_counts_of_datasets(root, printed):
  #             records leaked too long capped used
  assert re.search(r'alpha +12 +2 +0 +2 +8 +66\.7% ', printed)
  assert re.search(r'beta +6 +1 +1 +0 +4 +33\.3% ', printed)
  assert re.search(r'all +18 +3 +1 +2 +12 +100\.0% ', printed)
  # One is bad, one too long.
  assert 'records left out: 2; the first:' in printed
  assert 'train.jsonl:19' in printed
  assert re.search(r'alpha +held +2 +12\n', printed)
  assert re.search(r'beta +held +1 +6\n', printed)
  assert f'picture: {root}/run/inspect/train.png' in printed
  assert_picture(root / 'run/inspect/train.png')


def test_a_step_is_what_training_sees(root, printed):
  *_, batches = _open(root)
  with batches.starting_at(2) as stream:
    hosts = list(itertools.islice(stream, 2))
  names = re.findall(r' · id (\S+) · step', printed)
  assert names == [name for host in hosts for name in host.ids]
  with batches.starting_at(0) as stream:
    hosts = list(itertools.islice(stream, 30))
  assert 'At a glance: 120 examples of steps 0 to 29\n' in printed
  assert sum(len(host.ids) for host in hosts) == 120
  cut = sum(host.passages_cut for host in hosts)
  dropped = sum(host.passages_dropped for host in hosts)
  assert re.search(rf' {cut} +of \d+ passages were cut', printed)
  assert re.search(rf' {dropped} +of \d+ passages were dropped', printed)
  assert cut and dropped
  real = sum(host.real_tokens for host in hosts)
  computed = sum(host.computed_tokens for host in hosts)
  share = f'{real / computed:.1%}'
  assert re.search(rf'{share} +{real:,} +of {computed:,} computed', printed)
  shapes = collections.Counter(
    (host.batch.prefix.shape[1], host.batch.suffix.shape[1]) for host in hosts
  )
  for (prefix, suffix), count in shapes.items():
    assert re.search(rf' {prefix} \+ {suffix} +{count} ', printed)
  for name, positions, limit in (
    ('prefix', 'prefix_positions', 70),
    ('suffix', 'suffix_positions', 60),
    ('answer', 'target_index', 12),
  ):
    sizes = np.concatenate(
      [(getattr(host.batch, positions) >= 0).sum(1) for host in hosts]
    )
    marks = [f'{n:.0f}' for n in np.percentile(sizes, [0, 5, 50, 95, 99, 100])]
    row = ' +'.join([name, *marks, str(limit)])
    assert re.search(rf' {row}\n', printed), (row, printed)


def _open(root, kind='plain', position='middle'):
  namespace: dict = {}
  exec((root / 'tiny.py').read_text(), namespace)
  cfg = namespace['get_config'](kind)
  cfg.virtual_tokens.position = position
  config.validate(cfg)
  assembler = Assembler.for_run(load_tokenizer(root / 'base'), cfg)
  report = training_set.bad_records(cfg.data)
  held_out = [
    training_set.read_held_out(cfg, field, 0, report)
    for field in ('validation', 'test')
  ]
  mixture, _ = training_set.open_training_set(
    cfg, assembler, held_out, lambda text: None
  )
  batches = pipeline.TrainBatches(
    mixture,
    cfg.data,
    cfg.virtual_tokens,
    assembler,
    example_pieces.first_virtual_id(assembler),
    cfg.seed,
  )
  return cfg, assembler, mixture, batches


@pytest.mark.parametrize(
  ('kind', 'position'),
  [
    ('drawn', 'middle'),
    *itertools.product(['plain', 'packed'], ['first', 'middle', 'last']),
  ],
)
def test_pieces_are_the_whole_of_the_arrays(root, kind, position):
  cfg, assembler, mixture, batches = _open(root, kind, position)
  encoder = assembler.encoder
  first_id = example_pieces.first_virtual_id(assembler)
  draws = cfg.virtual_tokens.draws_per_example
  stats = example_stats.Stats({'prefix': 70, 'suffix': 60, 'answer': 12})
  stats.shapes = {shape: np.zeros(3, int) for shape in batches.shapes}
  views, real = [], 0
  with batches.starting_at(0) as stream:
    for step, host in enumerate(itertools.islice(stream, 24)):
      window, at = divmod(step, 4)
      planned, batch = batches.plan(window)[at], host.batch
      stats.add_batch(planned, mixture)
      real += host.real_tokens
      rows = list(
        example_pieces.of_step(step, batch, planned, mixture, assembler)
      )
      assert [view.id for view in rows[::draws]] == list(host.ids)
      views += rows
      per_row = draws * cfg.data.examples_per_row
      for r in range(len(batch.prefix)):
        own = rows[r * per_row : (r + 1) * per_row]
        ids = [np.concatenate([i for _, i in view.pieces]) for view in own]
        [sizes] = zip(*(view.lengths for view in own), strict=True)
        # The last target is never an input.
        for actual, positions, expected in (
          (
            batch.prefix[r],
            batch.prefix_positions[r],
            [i[:n] for i, (n, _, _) in zip(ids, sizes, strict=True)][::draws],
          ),
          (
            batch.suffix[r],
            batch.suffix_positions[r],
            [i[n:-1] for i, (n, _, _) in zip(ids, sizes, strict=True)],
          ),
          (
            batch.targets[r],
            batch.target_index[r],
            [i[-n:] for i, (_, _, n) in zip(ids, sizes, strict=True)],
          ),
        ):
          np.testing.assert_array_equal(
            np.concatenate(expected), actual[positions >= 0]
          )
        for i, (prefix, suffix, _) in zip(ids, sizes, strict=True):
          assert len(i) == prefix + suffix + 1
  # Every piece has the label of what is in it.
  texts = {
    row['id']: [p['text'] for p in row['passages']['bm25']] for row in TRAIN
  }
  questions = {row['id']: row['question'] for row in TRAIN}
  chat, distractors = cfg.templates.chat, 0
  for view in views:
    pieces = collections.defaultdict(list)
    for label, ids in view.pieces:
      pieces[label].append(ids)
    [virtual], [answer] = pieces['virtual'], pieces['answer']
    assert (virtual == first_id + np.arange(len(virtual))).all()
    assert 'word' in encoder.tokenizer.decode(answer.tolist())
    starts = [encoder.before(chat).tolist()] if chat else []
    assert [ids.tolist() for ids in pieces['start']] == starts
    prompt = np.concatenate(pieces['prompt']).tolist()
    expected = encoder.prompt(questions[view.id], name='prompt', chat=chat)
    assert prompt == expected.tolist()
    labels = [label for label, _ in view.pieces if label != 'start']
    shown = ['passage'] * len(pieces['passage'])
    turn_end = ['prompt'] * chat
    assert (
      labels
      == {
        'first': ['virtual', *shown, 'prompt', 'answer'],
        'middle': [*shown, 'virtual', 'prompt', 'answer'],
        'last': [*shown, 'prompt', 'virtual', *turn_end, 'answer'],
      }[position]
    )
    kept = [passage for passage in view.passages if passage.kept]
    for passage, ids in zip(kept, pieces['passage'], strict=True):
      owner = passage.distractor_of or view.id
      distractors += bool(passage.distractor_of)
      if passage.kept == passage.lens[0]:
        text = encoder.tokenizer.decode(ids.tolist())
        assert text.split('] ')[1].strip() in texts[owner]
  assert bool(distractors) == (kind == 'packed')
  # The statistics count the same, from lengths alone.
  assert stats.rows == [lengths for view in views for lengths in view.lengths]
  assert sum(shape[1] for shape in stats.shapes.values()) == real
  ones = views[::draws]
  assert stats.examples == len(ones)
  own = [
    [p for p in view.passages if p.kept and not p.distractor_of]
    for view in ones
  ]
  bare = sum(not any(p.kept for p in view.passages) for view in ones)
  answered = sum(any(p.origin.has_answer for p in row) for row in own)
  assert stats.totals['bare'] == bare and (bare > 0) == (kind == 'packed')
  assert stats.totals['with_answer'] == answered and 0 < answered < len(ones)
  places = {view.place.partition(', draw ')[2] for view in views}
  assert places == ({'1 of 2', '2 of 2'} if kind == 'drawn' else {''})


def test_packed_in_chat_with_tokens_last(root, tmp_path):
  text = run(
    f'--config={root}/tiny.py:packed',
    '--config.virtual_tokens.position=last',
    '--examples=12',
    '--whole',
    f'--out={tmp_path}',
  )
  assert len(set(re.findall(r'step (\d), row \d of 2', text))) == 3
  assert 'replaced by one of question ' in text
  for example in examples_of(text):
    assert re.search(r' start +\d+ tokens?\n +⟨\w.*⟩user↵', example)
    question, end = re.split(r' virtual .*\n', example)
    assert question.rstrip().endswith('Answer:')
    assert '⟨end of turn⟩' in end and 'Question' not in end


def test_validation_is_shown_as_it_is_evaluated(root, tmp_path):
  text = run(
    f'--config={root}/tiny.py',
    '--split=validation',
    '--examples=5',
    f'--out={tmp_path}/a/b',
  )
  names = re.findall(r' · id (\S+) · evaluation', text)
  assert names == ['v3', 'v7', 'v5']
  assert re.search(r' passage 1 +bm25 rank 1 · contains an answer', text)
  assert re.search(r' passage 2 +bm25 rank 2 · contains an answer', text)
  assert '[1] Text 0 of alpha3, word3.↵\n' in text
  assert 'tokens 1 to 8 of 8' in text
  assert text.count('␣of⟨eos⟩') == 3
  assert re.search(r'held +3\n', text)
  assert_picture(tmp_path / 'a/b/validation.png')


def test_answers_to_be_generated_on_a_narrow_ascii_terminal(root, tmp_path):
  text = run(
    f'--config={root}/tiny.py',
    '--split=test',
    f'--out={tmp_path}',
    COLUMNS='60',
    PYTHONIOENCODING='ascii',
  )
  assert text.isascii()
  assert 'to be generated; accepted are' in text
  assert 'one | two' in text
  # There is no answer, so no end of one.
  assert 'eos' not in text
  lines = text.partition('picture: ')[0].splitlines()
  assert max(map(len, lines)) <= 60
  assert_picture(tmp_path / 'test.png')


def test_colour_only_where_it_is_wanted(root):
  args = (f'--config={root}/tiny.py', '--examples=1', '--windows=1')
  terminal = {'FORCE_COLOR': '1', 'TERM': 'xterm-256color'}
  colours = run(*args, **terminal)
  plain = run(*args, **terminal, NO_COLOR='1')
  assert '\x1b' not in plain
  for label, code in (
    ('passage 1', 36),
    ('virtual', 35),
    ('prompt', 32),
    ('answer', 33),
  ):
    assert re.search(rf'\x1b\[1;7;{code}m {label} +\x1b\[0m', colours)
  lines = re.sub(r'\x1b\[[\d;]*m', '', colours).splitlines()
  assert [x.rstrip() for x in lines] == plain.splitlines()


@pytest.mark.parametrize(
  'args, message',
  [
    (['--step=30'], '--step=30: config.train.num_steps=30'),
    (['--split=test', '--step=1'], '--step: only --split=train'),
    (['--split=test', '--config.data.test=()'], 'config.data.test: no records'),
    (['--out=/proc/none'], '/proc/none/train.png: cannot be written'),
    (['--config.data.on_bad_record=error'], 'train.jsonl:19'),
  ],
)
def test_mistakes_are_one_message(root, args, message):
  done = command(f'--config={root}/tiny.py', '--examples=0', *args)
  assert done.returncode == 1
  errors = re.findall(r'^error: .*', done.stderr, re.MULTILINE)
  assert len(errors) == 1 and message in errors[0]
  assert 'Traceback' not in done.stderr


def test_the_quickstart_needs_no_weights(tmp_path):
  text = run(
    '--config=configs/quickstart.py',
    f'--config.workdir={tmp_path}',
    '--windows=1',
    '--examples=2',
  )
  assert re.search(r'squad +1,500 +0 +0 +0 +1,500 +50\.0%', text)
  assert re.search(r'all +3,000 +0 +0 +0 +3,000 +100\.0%', text)
  assert text.count('⟨eos⟩') == 2
  assert_picture(tmp_path / 'inspect/train.png')


@pytest.fixture(scope='module')
def show(root):
  tokenizer = load_tokenizer(root / 'base')

  def show(text, answers=(), whole=True):
    ids = np.array(tokenizer.encode(text), np.int32)
    printer = printable_ids.IdPrinter(tokenizer, whole)
    eos = printer.show(np.array([tokenizer.eos_id]), 'red')
    assert eos.plain == '⟨eos⟩'
    return printer.show(ids, 'red', answers)

  return show


def test_control_characters_are_escaped(show):
  text = 'a\x1b[2J\x07\tb\r\n\n\u202ec [bold]d[/bold] :smile: <|eos|>'
  assert show(text).plain == (
    'a\\x1b[2J\\x07\\x09b\\x0d↵↵\n\\x202ec [bold]d[/bold] :smile: <|eos|>'
  )


def test_long_texts_keep_ends_and_answer(show):
  text = 'start ' + 'word ' * 200 + 'Answer, ' + 'word ' * 200 + 'stop'
  assert show(text).plain == text
  shown = show(text, ['answer'], whole=False)
  assert len(shown.plain) < 500
  assert shown.plain.startswith('start ') and shown.plain.endswith(' stop')
  assert 'word Answer, word' in shown.plain
  left_out = re.findall(r' … (\d+) characters … ', shown.plain)
  kept = re.sub(r' … \d+ characters … ', '', shown.plain)
  assert len(kept) + sum(map(int, left_out)) == len(text)
  marked = [
    shown.plain[span.start : span.end]
    for span in shown.spans
    if 'reverse' in str(span.style)
  ]
  assert marked == ['Answer']
  none = show(text, ['nswer'], whole=False)
  assert not any('reverse' in str(span.style) for span in none.spans)
