"""What `python -m vtokens.data.inspect` shows, against the data it was given.

Tokens are bytes here, so a text has as many of them as it has characters.
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
from rich.console import Console

from vtokens import config
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.inspect import (
  inspect_examples,
  inspect_report,
  inspect_stats,
  inspect_text,
)
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
# Two of alpha are asked there too, and one of beta that is also too long.
VALIDATION = [
  {
    **train_record(name, i),
    'id': f'v{i}',
    'dataset': 'held',
    'answers': ['Text'],
  }
  for name, i in (('alpha', 3), ('alpha', 7), ('beta', 5))
]
TEST = [{**train_record('gamma', i), 'answers': ['one', 'two']} for i in (1, 2)]


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('inspect')
  tiny_models.save_tokenizer(root / 'base')
  # No weights: they are not looked at.
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
  for name, rows in {
    'train': TRAIN,
    'validation': VALIDATION,
    'test': TEST,
  }.items():
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (root / f'{name}.jsonl').write_text(text)
  with (root / 'train.jsonl').open('a') as f:
    f.write('{"question": "", "answers": ["a"]}\n')
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


def assert_picture(path: pathlib.Path):
  image = matplotlib.image.imread(path)
  assert image.shape[0] > 300 and image.shape[1] > 700
  # Something is drawn.
  assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.fixture(scope='module')
def printed(root) -> str:
  """Two steps of the training data, in full."""
  return run(f'--config={root}/tiny.py', '--examples=8', '--step=2')


def test_every_example_is_shown_with_its_pieces(root, printed):
  assert '\x1b' not in printed  # Not a terminal.
  examples = re.split(r'Example \d of 8 .*\n', printed)[1:]
  examples[-1] = examples[-1].split('Training data')[0]
  assert len(examples) == 8
  by_id = {row['id']: row for row in TRAIN}
  for number, text in enumerate(examples):
    found = re.search(
      r'(\w+) · id (\S+) · step (\d), row (\d) of 4 · '
      r'prefix (\d+) \+ suffix (\d+) tokens',
      text,
    )
    row = by_id[found[2]]
    assert found[1] == row['dataset']
    assert (int(found[3]), int(found[4])) == (
      2 + number // 4,
      1 + number % 4,
    )
    k = int(re.search(r' virtual +tokens 1 to (\d) of 8\n', text)[1])
    assert '█' * k + '░' * (8 - k) in text
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
        # The body has the line break of its end to spare, and no more.
        assert len(body) <= int(match[7]) <= len(body) + 1
        assert lines[0].startswith(f'[{at}]{body[: int(match[6])]}')
    assert shown >= 1
    dropped = re.findall(r' dropped +bm25 rank \d.* tokens did not fit', text)
    assert shown + len(dropped) in (2, 3)
    if 'CUT' not in text:
      assert prefix == int(found[5])
  # The limit of 70 tokens is short for three passages.
  assert 'CUT to the first' in printed and 'did not fit' in printed


def test_counts_of_datasets(printed):
  #             records leaked too long capped used
  assert re.search(r'alpha +12 +2 +0 +2 +8 +66\.7% ', printed)
  assert re.search(r'beta +6 +1 +1 +0 +4 +33\.3% ', printed)
  assert re.search(r'all +18 +3 +1 +2 +12 +100\.0% ', printed)
  # One is bad, one too long.
  assert 'records left out: 2; the first:' in printed
  assert 'train.jsonl:19' in printed
  assert re.search(r'alpha +held +2 +12\n', printed)
  assert re.search(r'beta +held +1 +6\n', printed)


def test_a_step_is_what_training_sees(root, printed):
  cfg, assembler, mixture, batches = _open(root)
  del cfg, assembler, mixture
  with batches.starting_at(2) as stream:
    hosts = list(itertools.islice(stream, 2))
  names = re.findall(r' · id (\S+) · step', printed)
  assert names == [name for host in hosts for name in host.ids]
  with batches.starting_at(0) as stream:
    hosts = list(itertools.islice(stream, 30))
  found = re.search(r'At a glance: (\d+) examples of steps 0 to 29\n', printed)
  assert int(found[1]) == sum(len(host.ids) for host in hosts) == 120
  cut = sum(host.passages_cut for host in hosts)
  dropped = sum(host.passages_dropped for host in hosts)
  assert re.search(rf' {cut}  of \d+ passages cut', printed)
  assert re.search(rf' {dropped}  of \d+ passages dropped', printed)
  assert cut and dropped
  real = sum(host.real_tokens for host in hosts)
  share = real / sum(host.computed_tokens for host in hosts)
  assert f'{share:.1%}  of the tokens computed are real' in printed
  shapes = collections.Counter(
    (host.batch.prefix.shape[1], host.batch.suffix.shape[1]) for host in hosts
  )
  for (prefix, suffix), count in shapes.items():
    assert re.search(rf' {prefix} \+ {suffix} +{count} ', printed)
  longest = max((h.batch.prefix_positions >= 0).sum(1).max() for h in hosts)
  assert f'max {longest} of 70' in printed
  longest = max((h.batch.target_index >= 0).sum(1).max() for h in hosts)
  assert f'max {longest} of 12' in printed


def test_the_picture(root, printed):
  assert f'picture: {root}/run/inspect/train.png' in printed
  assert_picture(root / 'run/inspect/train.png')


def _open(root, kind='plain', position='middle'):
  namespace: dict = {}
  exec((root / 'tiny.py').read_text(), namespace)
  cfg = namespace['get_config'](kind)
  cfg.virtual_tokens.position = position
  config.validate(cfg)
  tokenizer = load_tokenizer(root / 'base')
  assembler = Assembler.for_run(tokenizer, cfg)
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
    tokenizer.max_id + 1,
    cfg.seed,
  )
  return cfg, assembler, mixture, batches


@pytest.mark.parametrize('kind', ['plain', 'packed', 'drawn'])
def test_pieces_are_the_whole_of_the_arrays(root, kind):
  cfg, assembler, mixture, batches = _open(root, kind)
  offset = assembler.encoder.tokenizer.max_id + 1
  draws = cfg.virtual_tokens.draws_per_example
  views, real = [], 0
  with batches.starting_at(0) as stream:
    for step, host in enumerate(itertools.islice(stream, 24)):
      window, at = divmod(step, 4)
      rows = list(
        inspect_examples.of_step(
          step, host, batches.plan(window)[at], mixture, assembler, offset
        )
      )
      assert [view.id for view in rows[::draws]] == list(host.ids)
      batch = host.batch
      per_row = draws * cfg.data.examples_per_row
      for r in range(len(batch.prefix)):
        own = rows[r * per_row : (r + 1) * per_row]
        for ids, positions, pieces in (
          (
            batch.prefix[r],
            batch.prefix_positions[r],
            [
              x
              for v in own[::draws]
              for x in (v.before, *(p.ids for p in v.passages))
            ],
          ),
          (
            batch.suffix[r],
            batch.suffix_positions[r],
            [x for v in own for x in (v.virtual, v.prompt, v.targets[:-1])],
          ),
          (
            batch.targets[r],
            batch.target_index[r],
            [v.targets for v in own],
          ),
        ):
          np.testing.assert_array_equal(
            np.concatenate(pieces), ids[positions >= 0]
          )
      real += host.real_tokens
      views += rows
  # Every passage is of the question, or of the other one that is named.
  decode = assembler.encoder.tokenizer.decode
  texts = {
    row['id']: [p['text'] for p in row['passages']['bm25']] for row in TRAIN
  }
  others = 0
  for view in views:
    assert (view.virtual == offset + np.arange(len(view.virtual))).all()
    for passage in view.passages:
      owner = passage.other or view.id
      others += bool(passage.other)
      text = decode(passage.ids.tolist())
      if passage.kept == passage.body:
        assert any(f'] {t}\n' in text for t in texts[owner]) or (
          'gold' in passage.origin.retriever
        )
  assert bool(others) == (kind == 'packed')
  plans = [plan for w in range(6) for plan in batches.plan(w)]
  stats = inspect_stats.of_plans(
    plans,
    mixture,
    batches.shapes,
    {'prefix': 70, 'suffix': 60, 'answer': 12},
  )
  np.testing.assert_array_equal(
    stats.lengths['prefix'], [view.prefix_len for view in views]
  )
  np.testing.assert_array_equal(
    stats.lengths['suffix'], [view.suffix_len for view in views]
  )
  np.testing.assert_array_equal(
    stats.lengths['answer'], [len(view.targets) for view in views]
  )
  assert sum(use.real for use in stats.shapes.values()) == real
  assert stats.bare == sum(
    not any(p.kept for p in view.passages) for view in views[::draws]
  )
  assert (stats.bare > 0) == (kind == 'packed')
  answered = sum(
    any(p.kept and not p.other and p.origin.has_answer for p in view.passages)
    for view in views[::draws]
  )
  assert stats.with_answer == answered
  assert 0 < answered < len(views)
  assert stats.examples == len(views) / draws
  places = {view.place.partition(', draw ')[2] for view in views}
  assert places == ({'1 of 2', '2 of 2'} if kind == 'drawn' else {''})


@pytest.mark.parametrize('kind', ['plain', 'packed'])
@pytest.mark.parametrize('position', ['first', 'last'])
def test_pieces_are_put_together_as_in_the_arrays(root, kind, position):
  cfg, assembler, mixture, batches = _open(root, kind, position)
  offset = assembler.encoder.tokenizer.max_id + 1
  encoder, chat = assembler.encoder, kind == 'packed'
  ends = len(encoder.turn_end(chat))
  views = []
  with batches.starting_at(0) as stream:
    for step, host in enumerate(itertools.islice(stream, 12)):
      window, at = divmod(step, 4)
      rows = list(
        inspect_examples.of_step(
          step, host, batches.plan(window)[at], mixture, assembler, offset
        )
      )
      views += rows
      batch, per_row = host.batch, cfg.data.examples_per_row
      for r in range(len(batch.prefix)):
        parts = [], []
        for view in rows[r * per_row : (r + 1) * per_row]:
          assert view.before.tolist() == encoder.before(chat).tolist()
          passages = [x for p in view.passages for x in p.ids]
          question = [*view.prompt[: len(view.prompt) - ends]]
          end = [*view.prompt[len(view.prompt) - ends :]]
          answer = [*view.targets[:-1]]
          if position == 'first':
            pieces = [*view.before], [view.virtual, passages, question]
          else:
            pieces = [*view.before, *passages], [question, view.virtual]
          assert view.prefix_len == len(pieces[0])
          suffix = [i for x in (*pieces[1], end, answer) for i in x]
          assert view.suffix_len == len(suffix)
          assert view.virtual_at == [*pieces[0], *suffix].index(offset)
          parts[0].extend(pieces[0])
          parts[1].extend(suffix)
        for part, ids, positions in zip(
          parts,
          (batch.prefix[r], batch.suffix[r]),
          (batch.prefix_positions[r], batch.suffix_positions[r]),
          strict=True,
        ):
          assert part == ids[positions >= 0].tolist()
  plans = [plan for w in range(3) for plan in batches.plan(w)]
  stats = inspect_stats.of_plans(plans, mixture, batches.shapes, {})
  for name in ('prefix', 'suffix'):
    assert stats.lengths[name].tolist() == [
      getattr(view, f'{name}_len') for view in views
    ]


@pytest.mark.parametrize(
  'position, split', [('first', 'train'), ('last', 'test')]
)
def test_pieces_are_shown_in_their_order(root, tmp_path, position, split):
  text = run(
    f'--config={root}/tiny.py:packed',
    f'--config.virtual_tokens.position={position}',
    '--config.data.passages.none=0.0',
    f'--split={split}',
    '--examples=2',
    '--step=0',
    f'--out={tmp_path}',
  )
  examples = re.split(r'Example \d of 2 .*\n', text)[1:]
  assert len(examples) == 2
  for example in examples:
    labels = re.findall(
      r'^ (start|passage|virtual|prompt|answer)\b', example, re.MULTILINE
    )
    shown = ['passage'] * labels.count('passage')
    assert shown
    if position == 'first':
      assert labels == ['start', 'virtual', *shown, 'prompt', 'answer']
    else:
      tokens = ['prompt', 'virtual', 'prompt']
      assert labels == ['start', *shown, *tokens, 'answer']
      question, end = re.split(r' virtual .*\n.*\n', example)
      assert question.rstrip().endswith('Answer:')
      assert '⟨end of turn⟩' in end and 'Question' not in end
  # Of the limits that there are, the passages have theirs and the rest's.
  most = 70 + 120 if position == 'first' else 120
  assert re.search(rf'max \d+ of {most}\b', text)


def test_packed_in_chat(root):
  text = run(f'--config={root}/tiny.py:packed', '--examples=12', '--whole')
  assert len(set(re.findall(r'step (\d), row \d of 2', text))) == 3
  assert len(re.findall(r' start +\d+ tokens?\n +⟨\w.*⟩user↵', text)) == 12
  assert '⟨end of turn⟩' in text
  assert 'one of another question, ' in text
  per_step = collections.defaultdict(set)
  for step, k in re.findall(
    r' · step (\d),.*?tokens 1 to (\d) of 8', text, re.DOTALL
  ):
    per_step[step].add(k)
  assert all(len(found) == 1 for found in per_step.values())


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
  assert text.count('␣Text⟨eos⟩') == 3
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
  # No answer, so no end of one.
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
    (
      ['--split=test', '--config.data.test=()'],
      'config.data.test: no records',
    ),
    (['--out=/proc/none'], '/proc/none/train.png: cannot be written'),
    (['--config.data.on_bad_record=error'], 'train.jsonl:19'),
  ],
)
def test_mistakes_are_one_message(root, args, message):
  done = command(f'--config={root}/tiny.py', '--examples=0', *args)
  assert done.returncode == 1
  errors = [
    line for line in done.stderr.splitlines() if line.startswith('error: ')
  ]
  assert len(errors) == 1
  assert message in errors[0]
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
def tokenizer(root):
  return load_tokenizer(root / 'base')


def ids(tokenizer, text):
  return np.array(tokenizer.encode(text), np.int32)


def test_what_could_steer_a_terminal_is_spelt_out(tokenizer):
  reader = inspect_text.Reader(tokenizer, whole=True)
  text = 'a\x1b[2J\x07\tb\r\n\n\u202ec [bold]d[/bold] :smile: <|eos|>'
  shown = reader.show(ids(tokenizer, text), 'red')
  assert shown.plain == (
    'a\\x1b[2J\\x07\\x09b\\x0d↵↵\n\\x202ec [bold]d[/bold] :smile: <|eos|>'
  )
  # The token itself is told from text that looks like it.
  end = np.array([tokenizer.eos_id], np.int32)
  assert reader.show(end, 'red').plain == '⟨eos⟩'


def test_long_texts_keep_ends_and_answer(tokenizer):
  text = 'start ' + 'word ' * 200 + 'Answer, ' + 'word ' * 200 + 'stop'
  whole = inspect_text.Reader(tokenizer, whole=True)
  assert whole.show(ids(tokenizer, text), 'red').plain == text
  short = inspect_text.Reader(tokenizer, whole=False)
  shown = short.show(ids(tokenizer, text), 'red', ['answer'])
  assert len(shown.plain) < 500
  assert shown.plain.startswith('start ') and shown.plain.endswith(' stop')
  assert 'word Answer, word' in shown.plain
  left_out = [
    int(n) for n in re.findall(r' … (\d+) characters … ', shown.plain)
  ]
  kept = re.sub(r' … \d+ characters … ', '', shown.plain)
  assert len(kept) + sum(left_out) == len(text)
  marked = [
    shown.plain[span.start : span.end]
    for span in shown.spans
    if 'reverse' in str(span.style)
  ]
  assert marked == ['Answer']
  none = short.show(ids(tokenizer, text), 'red', ['nswer'])
  assert not any('reverse' in str(span.style) for span in none.spans)


def test_histogram_bars(capsys):
  lengths = np.repeat([1, 2, 3], [10, 20, 5])
  stats = inspect_stats.Stats(
    lengths={'prefix': lengths, 'suffix': lengths * 40, 'answer': lengths * 0},
    limits={'prefix': 3, 'suffix': 999, 'answer': 9},
    datasets={},
    shapes={},
    passages=0,
    cut=0,
    dropped=0,
    bare=0,
    with_answer=0,
    with_gold=0,
  )
  inspect_report.print_lengths(Console(width=100), stats)
  printed = capsys.readouterr().out
  assert 'answer' not in printed
  assert 'max 3 of 3' in printed and 'max 120 of 999' in printed
  assert re.search(r' 1 █████       29% +40–50 █████       29%', printed)
  assert re.search(r' 2 ██████████  57%', printed)
  assert re.search(r' 3 ██▌         14%', printed)
  # A bin each for 40, 80 and 120, and no other.
  assert len(re.findall(r'–.* 0%', printed)) == 5
