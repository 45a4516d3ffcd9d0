r"""What tokens learn of "I don't know": F1 of refusals, and EM lost by it.

    python benchmarks/refusals.py --data DIR --work runs/refusals

DIR has questions and passages found for them by BM25:

  qa/SET.{train,test}.jsonl.gz  {id, question, answers,
                                retrieved: [[id, score], ...]}
  corpus/*.jsonl.xz             {id, title, text}

A question is shown with three passages. It is

  answerable  BM25's first three, one of which contains an answer
  similar     BM25's first three, none of which does
  unrelated   the passages of another answerable question, without an answer

Virtual tokens are trained twice by `configs/refusals.py`: once they refuse
similar and unrelated questions, one in five each, and once these are left out
(`data.unanswerable=skip`). Both are asked `--per_set` answerable test questions
of each set. Those that refuse are also asked as many of the other two kinds.
Sets of `--held_out` are not trained on.

Refusals of the similar and of the unrelated questions are scored apart, each
next to the answerable ones. The bias of refusals (docs/training.md) is chosen
on the test questions of the sets that are trained on, so at this bias only the
figures of the held-out sets are fair. The same command goes on where it was
stopped.
"""

import gzip
import json
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags as absl_flags
from scipy import stats

from vtokens.data import containment
from vtokens.data.open_qa import build_open_qa
from vtokens.host import writers
from vtokens.scoring import refusals
from vtokens.settings import flags

_DATA = absl_flags.DEFINE_string(
  'data', None, 'Questions and corpus.', required=True
)
_WORK = absl_flags.DEFINE_string(
  'work', 'runs/refusals', 'For everything written.'
)
_SETS = absl_flags.DEFINE_list(
  'sets',
  ['squad', 'nq', 'triviaqa', 'hotpotqa', 'entityquestions'],
  'Trained on, and tested.',
)
_HELD_OUT = absl_flags.DEFINE_list(
  'held_out', ['webquestions', 'ottqa'], 'Only tested.'
)
_TRAINING = absl_flags.DEFINE_integer('training', 1000, 'Questions of a set.')
_PER_SET = absl_flags.DEFINE_integer(
  'per_set', 100, 'Of each kind, of a test set.'
)
_STEPS = absl_flags.DEFINE_integer('steps', 112, 'Of training.')
_KIND = absl_flags.DEFINE_enum(
  'kind', 'table', ['table', 'kv'], 'Of the virtual tokens.'
)
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')

_SHOWN = 3
# Kinds of a question, by whether BM25's passages have an answer.
_KINDS = {True: ('answerable', 'unrelated'), False: ('similar',)}
# End of the id of a question that has the passages of another one.
_UNRELATED = '/unrelated'
# A bias with which nothing is refused, so that all others can be looked at.
_NEVER = -100.0
# Shares of the training questions. Where most are to be refused, tokens learn
# to refuse every question (docs/quality.md).
_SHARES = {'answerable': 0.6, 'similar': 0.2, 'unrelated': 0.2}
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
    if len(row['question']) <= _MAX_QUESTION and len(row['retrieved']) >= _SHOWN
  ]
  random.Random(f'{name} {split}').shuffle(rows)
  return rows


def _record(row: _Row, texts: dict[str, _Row]) -> _Row:
  """A question with BM25's passages, marked if they do not have an answer."""
  passages = [texts[id_] for id_, _ in row['retrieved'][:_SHOWN]]
  fields = ('id', 'dataset', 'question', 'answers')
  return {
    **{f: row[f] for f in fields},
    'answerable': _have_answer(passages, row),
    'passages': {'bm25': passages},
  }


def _have_answer(passages: Sequence[_Row], row: _Row) -> bool:
  matcher = containment.Matcher(row['answers'])
  return any(matcher.contains(passage['text']) for passage in passages)


def _choose(
  name: str,
  rows: Sequence[_Row],
  texts: dict[str, _Row],
  wanted: Mapping[str, int],
) -> list[_Row]:
  """The first questions of each kind, as many as `wanted` says."""
  chosen: dict[str, list[_Row]] = {kind: [] for kind in wanted}
  for row in rows:
    record = _record(row, texts)
    for kind in _KINDS[record['answerable']]:
      if len(chosen[kind]) < wanted[kind]:
        chosen[kind].append(record)
        break
  chosen['unrelated'] = list(_exchanged(chosen['unrelated']))
  for kind, number in wanted.items():
    if len(chosen[kind]) < number:
      print(f'{name}: {len(chosen[kind])} of {number} {kind} questions found')
  return [record for records in chosen.values() for record in records]


def _exchanged(records: Sequence[_Row]) -> Iterator[_Row]:
  """Each question with the passages of the next that lack its answers."""
  for number, record in enumerate(records):
    others = (*records[number + 1 :], *records[:number])
    for passages in (other['passages'] for other in others):
      if not _have_answer(passages['bm25'], record):
        yield {
          **record,
          'id': record['id'] + _UNRELATED,
          'answerable': False,
          'passages': passages,
        }
        break


def _prepare(work: pathlib.Path) -> None:
  """Writes train.jsonl and test.jsonl, unless they are there.

  Raises:
    SystemExit: the files in the work directory are of other settings.
  """
  size, per_set = _TRAINING.value, _PER_SET.value
  made = {
    'sets': _SETS.value,
    'held_out': _HELD_OUT.value,
    'training': size,
    'per_set': per_set,
    'shares': _SHARES,
  }
  note = work / 'questions.json'
  if note.exists():
    if json.loads(note.read_text()) != made:
      sys.exit(f'{note} is of other settings; choose another --work')
    return
  # Questions that are looked at: enough of all kinds.
  train = {name: _rows(name, 'train')[: 10 * size] for name in _SETS.value}
  test = {
    name: _rows(name, 'test')[: 20 * per_set]
    for name in (*_SETS.value, *_HELD_OUT.value)
  }
  texts = build_open_qa.read_corpus(
    pathlib.Path(_DATA.value, 'corpus'),
    {
      id_
      for rows in (*train.values(), *test.values())
      for row in rows
      for id_, _ in row['retrieved'][:_SHOWN]
    },
  )
  for split, sets, wanted in (
    ('train', train, {k: round(v * size) for k, v in _SHARES.items()}),
    ('test', test, dict.fromkeys(_SHARES, per_set)),
  ):
    lines = [
      json.dumps(record, ensure_ascii=False) + '\n'
      for name, rows in sets.items()
      for record in _choose(f'{name}, {split}', rows, texts, wanted)
    ]
    writers.write_text(work / f'{split}.jsonl', ''.join(lines))
  writers.write_json(note, made)


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
    '--config.data.passages.no_answer=0.0',
    f'--config.virtual_tokens.kind={_KIND.value}',
    f'--config.data.token_cache={work}/tokens',
    f'--config.train.num_steps={_STEPS.value}',
  )
  _call('train', *common, f'--config.workdir={work}/refuse')
  _call(
    'train',
    *common,
    f'--config.workdir={work}/answer',
    '--config.data.unanswerable=skip',
  )
  _evaluate(work, 'refuse', f'--config.decode.refusal_bias={_NEVER}')
  _evaluate(work, 'answer')
  _report(work)


def _evaluate(work: pathlib.Path, name: str, *settings: str) -> None:
  """Asks the tokens of a run the questions that they are meant for."""
  meant = {'refuse': 'refuse', 'answer': 'skip'}[name]
  _call(
    'evaluate',
    f'--config={_CONFIGS}/eval/quickstart.py',
    f'--config.workdir={work}/evaluation/{name}',
    f"--config.runs=('{work}/{name}',)",
    f"--config.data.sources=('{work}/test.jsonl',)",
    f'--config.data.unanswerable={meant}',
    '--config.data.max_prefix_tokens=1024',
    "--config.conditions=('tokens',)",
    '--config.num_active=(50,)',
    f'--config.num_passages=({_SHOWN},)',
    '--config.shuffle_passages=False',
    *settings,
  )


def _read(directory: pathlib.Path) -> dict[str, list[_Row]]:
  """Predictions by dataset."""
  found: dict[str, list[_Row]] = {}
  for path in sorted(directory.glob('predictions/*.jsonl')):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found[rows[0]['dataset']] = rows
  return found


def _of_kind(rows: Sequence[_Row], kind: str) -> list[_Row]:
  """The answerable questions, and those of one other kind."""
  unrelated = kind == 'unrelated'
  return [
    row
    for row in rows
    if row['em'] is not None or row['id'].endswith(_UNRELATED) == unrelated
  ]


def _columns(rows: Sequence[_Row]) -> tuple[np.ndarray, ...]:
  """Margin, whether it was refused, and EM of each question."""
  return (
    np.array([row.get('refusal_margin') for row in rows], float),
    np.array([row['refused'] for row in rows]),
    np.array([row['em'] for row in rows], float),
  )


def _em(rows: Sequence[_Row]) -> float:
  """EM of the questions with an answer."""
  return 100 * float(np.nanmean(np.array([row['em'] for row in rows], float)))


def _at(rows: Sequence[_Row], bias: float) -> dict[str, float]:
  """Scores at a bias that is at least that of the evaluation."""
  margins, before, em = _columns(rows)
  refused = before | (margins + bias > 0)
  scores = refusals.score(refused.tolist(), (~np.isnan(em)).tolist())
  assert scores is not None, 'both kinds of questions are asked'
  return {
    'bias': bias,
    **{name: getattr(scores, name) for name in ('precision', 'recall', 'f1')},
    'em': 100 * float(np.nanmean(np.where(refused, 0 * em, em))),
  }


def _separation(rows: Sequence[_Row]) -> float:
  """Chance that an unanswerable question has the larger of two margins.

  It is the area under the ROC curve of the margins: 0.5 by guessing, 1 if some
  bias tells all questions apart. An answer without a margin has the least.
  """
  margins, _, em = _columns(rows)
  margins = np.nan_to_num(margins, nan=-np.inf)
  unanswerable = np.isnan(em)
  found = stats.mannwhitneyu(margins[unanswerable], margins[~unanswerable])
  return float(found.statistic / unanswerable.sum() / (~unanswerable).sum())


def _choose_bias(rows: Sequence[_Row], without: float) -> float:
  """The bias of the highest F1 with an EM at most one point below `without`.

  If no bias has such an EM, it is the best one that costs no answer.

  Args:
    rows: predictions of the tokens that refuse.
    without: EM of the tokens that do not refuse.
  """
  margins, refused, em = _columns(rows)
  curve = refusals.curve(margins, refused, em, _NEVER)
  assert curve is not None, 'both kinds of questions are asked'
  spare = max(float(curve.em[0]) - (without - 1.0), 0.0)
  return float(curve.bias[curve.best(spare)])


def _report(work: pathlib.Path) -> None:
  """Prints the figures, and writes them to `--json`."""
  parts = {'trained': _SETS.value, 'held out': _HELD_OUT.value}
  refuse, answer = (
    {
      part: [row for name in names for row in found[name]]
      for part, names in parts.items()
      if names
    }
    for found in (
      _read(work / 'evaluation' / name) for name in ('refuse', 'answer')
    )
  )
  rows = []
  for kind in ('similar', 'unrelated'):
    chosen = _choose_bias(
      _of_kind(refuse['trained'], kind), _em(answer['trained'])
    )
    for part, all_asked in refuse.items():
      asked = _of_kind(all_asked, kind)
      rows += [
        {
          'kind': kind,
          'part': part,
          'n': len(asked),
          'bias_chosen_on_these': bias == chosen and part == 'trained',
          'em_without_refusals': _em(answer[part]),
          'separation': _separation(asked),
          **_at(asked, bias),
        }
        for bias in (_NEVER, 0.0, chosen)
      ]
  for row in rows:
    print(
      f'{row["kind"]}, {row["part"]} sets, bias {row["bias"]:+.3f}: precision '
      f'{row["precision"]:.1f}, recall {row["recall"]:.1f}, F1 '
      f'{row["f1"]:.1f}, EM {row["em"]:.1f}; EM of the tokens that do not '
      f'refuse {row["em_without_refusals"]:.1f}; separation of the kinds '
      f'{row["separation"]:.2f}'
    )
  if _JSON.value:
    content = {
      'tokens': _KIND.value,
      'steps': _STEPS.value,
      'training': _TRAINING.value,
      'per_set': _PER_SET.value,
      'scores': rows,
    }
    writers.write_json(_JSON.value, content)


if __name__ == '__main__':
  flags.run(main)
