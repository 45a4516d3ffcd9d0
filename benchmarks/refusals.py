r"""What a table learns of "I don't know": F1 of refusals, and EM lost by it.

    python benchmarks/refusals.py --data DIR --work runs/refusals

DIR has questions and passages found for them by BM25:

  qa/SET.{train,test}.jsonl.gz  {id, question, answers,
                                retrieved: [[id, score], ...]}
  corpus/*.jsonl.xz             {id, title, text}

Two tables are trained on the same questions by `configs/refusals.py`, one that
refuses and one that does not (`data.unanswerable=skip`). The first three
passages of each question contain an answer. They are shown, or, in three of ten
examples of the table that refuses, others that contain none. Where most targets
are refusals, a table learns to refuse every question (docs/quality.md).

Both are asked `--per_set` test questions of each set whose first three passages
contain an answer, and as many whose first three do not: these are marked as
unanswerable. Sets of `--held_out` are not trained on. The same command goes on
where it was stopped.
"""

import gzip
import json
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags

from vtokens.data import containment
from vtokens.data.open_qa import build_open_qa
from vtokens.host import writers

_DATA = flags.DEFINE_string(
  'data', None, 'Questions and corpus.', required=True
)
_WORK = flags.DEFINE_string('work', 'runs/refusals', 'For everything written.')
_SETS = flags.DEFINE_list(
  'sets',
  ['squad', 'nq', 'triviaqa', 'hotpotqa', 'entityquestions'],
  'Trained on, and tested.',
)
_HELD_OUT = flags.DEFINE_list(
  'held_out', ['webquestions', 'ottqa'], 'Only tested.'
)
_TRAINING = flags.DEFINE_integer('training', 1000, 'Questions of a set.')
_PER_SET = flags.DEFINE_integer('per_set', 100, 'Of each kind, of a test set.')
_STEPS = flags.DEFINE_integer('steps', 112, 'Of training.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

_SHOWN, _DEPTH = 3, 5
_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
# Most characters of a question: a few of triviaqa's are very long.
_MAX_QUESTION = 400

_Row = dict[str, Any]


def _rows(name: str, split: str) -> list[_Row]:
  """Questions with enough passages, in random order."""
  path = pathlib.Path(_DATA.value, 'qa', f'{name}.{split}.jsonl.gz')
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    rows = [{**json.loads(line), 'dataset': name} for line in file]
  rows = [
    row
    for row in rows
    if len(row['question']) <= _MAX_QUESTION and len(row['retrieved']) >= _DEPTH
  ]
  random.Random(f'{name} {split}').shuffle(rows)
  return rows


def _record(row: _Row, texts: dict[str, _Row]) -> _Row:
  passages = [texts[id_] for id_, _ in row['retrieved'][:_DEPTH]]
  fields = ('id', 'dataset', 'question', 'answers')
  return {**{f: row[f] for f in fields}, 'passages': {'bm25': passages}}


def _has_answer(record: _Row) -> bool:
  """Whether a passage that is shown contains an answer."""
  matcher = containment.Matcher(record['answers'])
  shown = record['passages']['bm25'][:_SHOWN]
  return any(matcher.contains(passage['text']) for passage in shown)


def _training(rows: Sequence[_Row], texts: dict[str, _Row]) -> Iterator[_Row]:
  """Questions of each set whose passages have an answer."""
  left = dict.fromkeys(_SETS.value, _TRAINING.value)
  for row in rows:
    if left[row['dataset']]:
      record = _record(row, texts)
      if _has_answer(record):
        left[row['dataset']] -= 1
        yield record


def _test(rows: Sequence[_Row], texts: dict[str, _Row]) -> Iterator[_Row]:
  """As many questions with as without an answer in the passages shown."""
  left = {True: _PER_SET.value, False: _PER_SET.value}
  for row in rows:
    record = _record(row, texts)
    has_answer = _has_answer(record)
    if left[has_answer]:
      left[has_answer] -= 1
      yield record if has_answer else {**record, 'answerable': False}


def _prepare(work: pathlib.Path) -> None:
  """Writes train.jsonl and test.jsonl, unless they are there."""
  if (work / 'test.jsonl').exists():
    return
  # Passages of a part of them have an answer.
  train = [
    row
    for name in _SETS.value
    for row in _rows(name, 'train')[: 10 * _TRAINING.value]
  ]
  by_set = {
    name: _rows(name, 'test')[: 20 * _PER_SET.value]
    for name in (*_SETS.value, *_HELD_OUT.value)
  }
  asked = [*train, *(r for rows in by_set.values() for r in rows)]
  texts = build_open_qa.read_corpus(
    pathlib.Path(_DATA.value, 'corpus'),
    {id_ for row in asked for id_, _ in row['retrieved'][:_DEPTH]},
  )
  for name, records in (
    ('train', list(_training(train, texts))),
    ('test', [r for rows in by_set.values() for r in _test(rows, texts)]),
  ):
    lines = (json.dumps(r, ensure_ascii=False) + '\n' for r in records)
    writers.write_text(work / f'{name}.jsonl', ''.join(lines))


def _call(program: str, *settings: str) -> None:
  command = [sys.executable, '-m', f'vtokens.{program}', *settings]
  subprocess.run(command, check=True)


def main(argv: Sequence[str]) -> None:
  """Prepares, trains, evaluates and reports."""
  del argv
  work = pathlib.Path(_WORK.value)
  work.mkdir(parents=True, exist_ok=True)
  _prepare(work)
  common = (
    f'--config={_CONFIGS}/refusals.py',
    f"--config.data.train=('{work}/train.jsonl',)",
    '--config.data.validation=()',
    '--config.data.test=()',
    '--config.data.on_bad_record=skip',
    '--config.data.max_prefix_tokens=1024',
    f'--config.data.passages.number=({_SHOWN}, {_SHOWN})',
    '--config.data.passages.order=rank',
    f'--config.data.token_cache={work}/tokens',
    f'--config.train.num_steps={_STEPS.value}',
  )
  _call('train', *common, f'--config.workdir={work}/refuse')
  _call(
    'train',
    *common,
    f'--config.workdir={work}/answer',
    '--config.data.unanswerable=skip',
    '--config.data.passages.no_answer=0.0',
  )
  _call(
    'evaluate',
    f'--config={_CONFIGS}/eval/quickstart.py',
    f'--config.workdir={work}/evaluation',
    f"--config.runs=('{work}/refuse', '{work}/answer')",
    f"--config.data.sources=('{work}/test.jsonl',)",
    '--config.data.unanswerable=refuse',
    '--config.data.max_prefix_tokens=1024',
    "--config.conditions=('tokens',)",
    '--config.num_active=(50,)',
    f'--config.num_passages=({_SHOWN},)',
    '--config.shuffle_passages=False',
  )
  _report(json.loads((work / 'evaluation' / 'report.json').read_text()))


def _report(report: dict[str, Any]) -> None:
  """Prints the figures, and writes them to `--json`."""
  em = {
    (cell['dataset'], cell['table']): cell['metrics']['em']['mean']
    for cell in report['cells']
    if cell['condition'] == 'tokens'
  }
  rows = []
  for one in report['abstentions']:
    name, table = one['dataset'], one['table']
    if one['condition'] == 'tokens' and table == 'refuse':
      rows.append(
        {
          'dataset': name,
          'held_out': name in _HELD_OUT.value,
          **{k: one['refusals'][k] for k in ('precision', 'recall', 'f1')},
          'em': em[name, 'refuse'],
          'em_without_refusals': em[name, 'answer'],
          'risk_area': one['risk_area'],
        }
      )
  differences = [
    {key: one[key] for key in ('dataset', 'n', 'metrics')}
    for one in report['comparisons']
    if {one['a']['table'], one['b']['table']} == {'refuse', 'answer'}
  ]
  for row in rows:
    print(
      f'{row["dataset"]:<16}{" held out" * row["held_out"]:<10} refusals: '
      f'precision {row["precision"]:5.1f} recall {row["recall"]:5.1f} F1 '
      f'{row["f1"]:5.1f}; EM {row["em"]:5.1f}, of the other table '
      f'{row["em_without_refusals"]:5.1f}'
    )
  for held_out in (False, True):
    part = [row for row in rows if row['held_out'] == held_out]
    if part:
      f1, lost = (
        sum(row[key] for row in part) / len(part)
        for key in ('f1', 'em_without_refusals')
      )
      lost -= sum(row['em'] for row in part) / len(part)
      print(
        f'{"held-out" if held_out else "trained"} sets: F1 of refusals '
        f'{f1:.1f}, EM lost {lost:.1f}'
      )
  if _JSON.value:
    content = {
      'sets': rows,
      'differences': differences,
      'steps': _STEPS.value,
      'training': _TRAINING.value,
      'per_set': _PER_SET.value,
    }
    writers.write_json(_JSON.value, content)


if __name__ == '__main__':
  app.run(main)
