"""The settings of `answer_quality.py`: base, questions and training."""

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import quickstart_runs
from quality_cells import CONTENDERS, Task

from vtokens import config
from vtokens.data.batch import Batch
from vtokens.data.pipeline import TrainBatches
from vtokens.data.planned import Planned, PlannedBatch
from vtokens.data.records import Record
from vtokens.host import errors, writers

# Sets with training questions in the directory of `--data`.
SEVEN = (
  'entityquestions',
  'hotpotqa',
  'nq',
  'ottqa',
  'squad',
  'triviaqa',
  'webquestions',
)
_VALIDATION, _TEST = 1, 2
# Questions of each of seven sets that are left out of the training, however
# many of them are for validation: all cells have one training.
_LEFT_OUT = 15


def quickstart(task: Task) -> config.Config:
  """The training questions of `configs/quickstart.py`, two passages each."""
  cfg = _quickstart(task)
  cfg.eval.max_validation = task.validation_questions
  cfg.eval.max_test = task.test_questions
  cfg.eval.num_passages = task.passages or 2
  return cfg


def seven(task: Task) -> config.Config:
  """Seven sets with passages of BM25, 1 to 5 in training, 3 in validation.

  Questions for validation are drawn from the training files, and left out of
  the training.
  """
  questions = pathlib.Path(task.data) / 'qa'
  cfg = _quickstart(task)
  # A run of this size has one directory for all contenders.
  cfg.data.token_cache = str(_shared(task) / 'token_cache')
  cfg.data.train = _files(questions, 'train')
  cfg.data.validation = (_sampled(task, 'train', _LEFT_OUT, _VALIDATION),)
  cfg.data.test = (_sampled(task, 'test', task.test_questions, _TEST),)
  cfg.data.corpus = tuple(
    map(str, sorted((questions.parent / 'corpus').glob('*.jsonl*')))
  )
  cfg.data.passages = config.Passages(number=(1, 5), retrievers=('bm25',))
  # Some training answers are longer than `max_answer_tokens`.
  cfg.data.on_bad_record = 'skip'
  cfg.data.max_prefix_tokens = 1536
  cfg.data.max_suffix_tokens = 256
  cfg.eval.num_passages = task.passages or 3
  cfg.eval.retriever = 'bm25'
  cfg.eval.shuffle_passages = False
  cfg.eval.max_validation = cfg.eval.max_test = 0
  cfg.eval.batch_size = 25
  cfg.eval.max_new_tokens = 16
  return cfg


SETTINGS: Mapping[str, Callable[[Task], config.Config]] = {
  'quickstart': quickstart,
  'seven': seven,
}
# Updates, and passages shown in tests, the most important number first.
STEPS = {'quickstart': 112, 'seven': 224}
PASSAGES = {'quickstart': (2,), 'seven': (3, 1, 5)}


def open_setting(task: Task) -> quickstart_runs.Setting:
  """Opens base and questions of a task."""
  cfg = SETTINGS[task.setting](task)
  exact = task.products == 'float32'
  cfg.base.quantize = 'none' if exact else 'bfloat16'
  return quickstart_runs.Setting(cfg)


def validation(task: Task, setting: quickstart_runs.Setting) -> list[Record]:
  """The validation questions; of `seven` as many of each set.

  Raises:
    errors.UserError: so many were not left out of the training.
  """
  if task.setting != 'seven':
    return setting.validation
  most = _LEFT_OUT * len(SEVEN)
  if not len(SEVEN) <= task.validation_questions <= most:
    raise errors.UserError(
      f'--validation_questions={task.validation_questions}: expected '
      f'{len(SEVEN)} to {most} for the setting seven'
    )
  each = task.validation_questions // len(SEVEN)
  of_sets: dict[str, list[Record]] = {}
  for record in setting.validation:
    of_sets.setdefault(record.dataset, []).append(record)
  return [record for own in of_sets.values() for record in own[:each]]


def open_batches(task: Task, setting: quickstart_runs.Setting) -> TrainBatches:
  """The batches of a task, in the order of those of the table."""
  batches = setting.batches()
  if task.contender == 'table':
    return batches
  table = open_setting(dataclasses.replace(task, contender='table'))
  return SameBatches(
    table.batches(),
    batches.mixture,
    setting.cfg.data,
    setting.cfg.virtual_tokens,
    setting.assembler,
    setting.opened.config.vocab_size,
    setting.cfg.seed,
  )


def _quickstart(task: Task) -> config.Config:
  cfg = quickstart_runs.load_config(str(task.directory), 0, task.seed)
  # The quickstart may change; cells of one work directory must not.
  cfg.optim = config.Optim(warmup_steps=min(10, task.steps // 2))
  cfg.train = config.Train(num_steps=task.steps)
  contender = CONTENDERS[task.contender]
  cfg.virtual_tokens = (
    # As the quickstart has them.
    config.VirtualTokens(
      draws_per_example=2, always_all=True, draw='power', draw_exponent=1.0
    )
    if contender.twice
    else config.VirtualTokens(draw='power', draw_exponent=0.5)
  )
  if contender.kind:
    cfg.virtual_tokens.kind = contender.kind
  if task.rate:
    cfg.optim.learning_rate = task.rate
  return cfg


def _shared(task: Task) -> pathlib.Path:
  return pathlib.Path(task.work) / task.setting / 'shared'


def _files(questions: pathlib.Path, split: str) -> tuple[str, ...]:
  files = [questions / f'{name}.{split}.jsonl.gz' for name in SEVEN]
  for file in files:
    if not file.is_file():
      raise errors.UserError(
        f'--data: {file} does not exist; expected a directory with '
        'qa/SET.{train,test}.jsonl.gz and corpus/*.jsonl.xz'
      )
  return tuple(map(str, files))


def _sampled(task: Task, split: str, each: int, stream: int) -> str:
  """Writes a file of questions drawn from each set; returns its path.

  The draw depends on the sets alone. Questions and answers that fit no prompt
  are left out of it.

  Args:
    task: has the directories.
    split: train or test.
    each: questions of a set; 0 for all.
    stream: number of the draw.
  """
  path = _shared(task) / f'{split}_{each}.jsonl'
  if path.exists():
    return str(path)
  drawn: list[str] = []
  for number, file in enumerate(_files(pathlib.Path(task.data) / 'qa', split)):
    with gzip.open(file, 'rt', encoding='utf-8') as lines:
      rows = [json.loads(line) for line in lines]
    rows = [
      {**row, 'dataset': SEVEN[number]}
      for row in rows
      if len(row['question']) <= 400 and len(row['answers'][0]) <= 60
    ]
    rng = np.random.default_rng([stream, number])
    order = rng.permutation(len(rows))
    drawn += [json.dumps(rows[i]) for i in order[: each or None]]
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.write_text(path, ''.join(f'{line}\n' for line in drawn))
  return str(path)


class SameBatches(TrainBatches):
  """Batches of the same examples, in the same order, as another stream's.

  Shapes, and so the order of batches, depend on the length of suffixes. Tokens
  that are not in the suffix, and several suffixes of an example, would have
  another order.

  Args:
    reference: the other stream, of the same data and seed.
    *args: of `TrainBatches`.
  """

  def __init__(self, reference: TrainBatches, *args: Any):
    super().__init__(*args)
    self._reference = reference

  def _window(self, number: int, places: Any) -> list[PlannedBatch]:
    own = {_content(e): e for e in (self._plan(*place) for place in places)}
    found = []
    for batch in self._reference.plan(number):
      rows = [[own[_content(e)] for e in row] for row in batch.rows]
      prefix = max(sum(e.prefix for e in row) for row in rows)
      suffix = max(sum(e.suffix for e in row) for row in rows)
      shape = next(
        (p, s) for p, s in self.shapes if p >= prefix and s >= suffix
      )
      found.append(dataclasses.replace(batch, rows=rows, shape=shape))
    return found


def _content(example: Planned) -> tuple[Any, ...]:
  """What an example shows and asks, without its virtual tokens.

  An example that comes twice in a window with the same passages and answer is
  one; its numbers of virtual tokens are then those of the second.
  """
  return example.member, example.draw.passages, example.draw.answer


def plain_examples(
  batch: Batch, vocab_size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields each example of a batch without virtual tokens.

  Args:
    batch: the suffixes of a prefix differ in their virtual tokens alone.
    vocab_size: id of the first virtual token.

  Yields:
    The ids, the answer and its end last, int32 array; the number of ids of the
    answer.
  """
  for r in range(len(batch.prefix)):
    prefixes = _segments(batch.prefix_segments, batch.prefix_positions, r)
    suffixes = _segments(batch.suffix_segments, batch.suffix_positions, r)
    real = batch.target_index[r] >= 0
    index, targets = batch.target_index[r][real], batch.targets[r][real]
    seen: set[int] = set()
    for number in range(suffixes.max(initial=-1) + 1):
      slots = suffixes == number
      parent = _parent(batch, r, number, slots)
      if parent in seen:
        continue
      seen.add(parent)
      suffix = batch.suffix[r][slots]
      own = targets[suffixes[index] == number]
      ids = np.concatenate(
        [
          batch.prefix[r][prefixes == parent],
          suffix[suffix < vocab_size],
          own[-1:],
        ]
      )
      yield ids.astype(np.int32), len(own)


def _parent(batch: Batch, row: int, number: int, slots: np.ndarray) -> int:
  """Number of the prefix before a suffix, which is in these slots."""
  if batch.suffix_parents is not None:
    return int(batch.suffix_parents[row][slots][0])
  # Each prefix has one suffix, or the row has one prefix.
  return 0 if batch.prefix_segments is None else number


def _segments(segments: Any, positions: Any, row: int) -> np.ndarray:
  """Number of the example of each slot of a row; -1 for padding."""
  numbers = 0 if segments is None else segments[row]
  found: np.ndarray = np.where(positions[row] >= 0, numbers, -1)
  return found
