"""The cells of `answer_quality.py`: what is measured, and its files.

A cell is one contender with one learning rate and one seed in one setting. Its
stages write one JSON file each, whole or not at all, so a killed program redoes
only the stage that was running:

  train.json     the training, and step_N.safetensors, what is trained
  validate.json  loss and EM on validation questions at these steps
  test_M.json    EM and F1 of each test question with M passages shown

The JSON files have a directory of their own, so that results of one machine go
on on another one, which has no snapshots: a stage that needs them trains again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from vtokens.host import errors, json_diff, writers

# The contender without training.
PROMPT = 'prompt'
# Whose gain over the prompt is the unit.
LORA = 'lora_qv'


@dataclasses.dataclass(frozen=True)
class Contender:
  """What is trained.

  Attributes:
    text: description for the report.
    rates: learning rates of the sweep.
    num_active: numbers of virtual tokens (k) to test with; (0,) if answers have
      no virtual tokens, or all of them.
    kind: `virtual_tokens.kind` of what vtokens trains; '' for others.
    twice: whether each example has two k in training, one of them n.
  """

  text: str
  rates: tuple[float, ...]
  num_active: tuple[int, ...] = (0,)
  kind: Literal['table', 'kv', ''] = ''
  twice: bool = False


CONTENDERS: Mapping[str, Contender] = {
  PROMPT: Contender('best of the untrained conditions', (0.0,)),
  'table': Contender(
    'vtokens, a table of 50 tokens',
    (2e-2, 1e-2, 5e-2),
    (50, 20, 5, 1),
    kind='table',
  ),
  'kv': Contender(
    'vtokens, keys and values of 50 tokens',
    (2e-2, 1e-2, 5e-2),
    (50, 20, 5, 1),
    kind='kv',
  ),
  'table_twice': Contender(
    'the table, each example with all tokens and with few',
    (2e-2, 1e-2, 5e-2),
    (50, 20, 5, 1),
    kind='table',
    twice=True,
  ),
  'kv_twice': Contender(
    'keys and values, each example with all tokens and with few',
    (2e-2, 1e-2, 5e-2),
    (50, 20, 5, 1),
    kind='kv',
    twice=True,
  ),
  LORA: Contender('PEFT LoRA, q and v, r = 8', (1e-3, 3e-4, 3e-3)),
  'lora_all': Contender(
    'PEFT LoRA, all linear layers, r = 16', (1e-3, 3e-4, 3e-3)
  ),
  'cartridge': Contender(
    'PEFT CARTRIDGE, 50 tokens, the first frozen', (3e-3, 1e-3, 1e-2)
  ),
  'prefix_tuning': Contender(
    'PEFT prefix tuning, 50 tokens', (3e-3, 1e-3, 1e-2)
  ),
  'prompt_tuning': Contender(
    'PEFT prompt tuning, 50 tokens', (1e-2, 3e-3, 3e-2)
  ),
}
STAGES = ('train', 'validate', 'test')


@dataclasses.dataclass(frozen=True)
class Task:
  """A stage of a cell, with all that its result depends on.

  Attributes:
    work: directory of the snapshots and questions of all cells.
    results: directory of the JSON files of all cells.
    setting: name of a setting in `quality_settings.py`.
    contender: one of `CONTENDERS`.
    rate: learning rate; 0 for the prompt.
    seed: of data, draws and initial values; 0 for the prompt.
    steps: updates.
    validations: how often to validate, the last time after the last step.
    validation_questions: most questions to validate with.
    test_questions: most questions of a data set to test with; 0 for all.
    data: directory of the question sets; '' if the setting has its own.
    products: dtype of the factors in vtokens' matrix products.
    stage: one of `STAGES`.
    passages: passages shown in a test; 0 in other stages.
  """

  work: str
  results: str
  setting: str
  contender: str
  rate: float
  seed: int
  steps: int
  validations: int
  validation_questions: int
  test_questions: int
  data: str = ''
  products: str = 'bfloat16'
  stage: str = 'train'
  passages: int = 0

  @property
  def cell(self) -> pathlib.Path:
    """The cell's path below `work` and `results`."""
    name = f'rate_{self.rate:g}_seed_{self.seed}'
    return pathlib.Path(self.setting) / self.contender / name

  @property
  def directory(self) -> pathlib.Path:
    """Directory of the cell's snapshots."""
    return self.work / self.cell

  @property
  def path(self) -> pathlib.Path:
    """File of the stage's result."""
    shown = f'_{self.passages}' if self.stage == 'test' else ''
    return self.results / self.cell / f'{self.stage}{shown}.json'

  @property
  def title(self) -> str:
    """The stage in a line of output."""
    shown = f', {self.passages} passages' if self.passages else ''
    return (
      f'{self.setting} {self.contender} rate {self.rate:g} seed {self.seed}: '
      f'{self.stage}{shown}'
    )

  @property
  def snapshot_steps(self) -> tuple[int, ...]:
    """Steps after which the trained values are kept, the last one included."""
    count = min(self.validations, self.steps)
    return tuple(round(self.steps * (i + 1) / count) for i in range(count))

  def at(self, stage: str, passages: int = 0) -> 'Task':
    """Another stage of the same cell."""
    return dataclasses.replace(self, stage=stage, passages=passages)

  def identity(self) -> dict[str, Any]:
    """What decides the result; directories may move."""
    values = dataclasses.asdict(self)
    del values['work'], values['results'], values['data']
    if self.stage == 'train':
      del values['test_questions'], values['validation_questions']
    elif self.stage == 'validate':
      del values['test_questions']
    return values

  def read(self) -> dict[str, Any] | None:
    """The result of the stage; None if there is none yet.

    Raises:
      errors.UserError: the result is of other settings.
    """
    if not self.path.exists():
      return None
    result: dict[str, Any] = json.loads(self.path.read_text())
    lines = json_diff.diff(result['task'], self.identity(), '')
    if lines:
      raise errors.UserError(
        f'{self.path} has the result of other settings:\n'
        f'{errors.lines(lines)}\nchoose another --results, or delete the '
        'directory of this cell'
      )
    return result

  def write(self, result: Mapping[str, Any]) -> None:
    """Writes the result of the stage, whole or not at all."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # In one line: a test has a number for each question.
    writers.write_json(
      self.path, {'task': self.identity(), **result}, indent=None
    )


def cells(
  like: Task,
  contenders: Iterable[str],
  rates: Sequence[float],
  seed: int,
) -> list[Task]:
  """The cells of a setting with one seed.

  Args:
    like: has the setting and all other fields.
    contenders: names of `CONTENDERS`.
    rates: only cells with these rates; empty for all.
    seed: the seed; the prompt has none, and is always there.
  """
  return [
    dataclasses.replace(
      like, contender=name, rate=rate, seed=0 if name == PROMPT else seed
    )
    for name in contenders
    for rate in CONTENDERS[name].rates
    if name == PROMPT or not rates or rate in rates
  ]


def check_rates(contenders: Sequence[str], rates: Sequence[float]) -> None:
  """Checks that a choice of rates leaves nothing out unsaid.

  Args:
    contenders: names of `CONTENDERS`.
    rates: chosen learning rates; empty for all.

  Raises:
    errors.UserError: a rate belongs to no contender, or a contender has none of
      the rates.
  """
  known = {
    name: CONTENDERS[name].rates for name in contenders if name != PROMPT
  }
  unknown = set(rates).difference(*known.values())
  without = [name for name, own in known.items() if not set(rates) & set(own)]
  if rates and (unknown or without):
    have = (f'{name} has {errors.several(own)}' for name, own in known.items())
    raise errors.UserError(
      '--rates: expected rates of the contenders, at least one of each: '
      + ('; '.join(have) or f'{PROMPT} has none')
    )


def best(sweep: Sequence[Task]) -> Task | None:
  """The cell of a contender's sweep with the lowest validation loss.

  Returns:
    The cell; None unless all of the sweep have been validated.
  """
  found = [(task, task.at('validate').read()) for task in sweep]
  losses = [
    (result['validations'][-1]['loss'], task)
    for task, result in found
    if result is not None
  ]
  if not losses or len(losses) < len(sweep):
    return None
  return min(losses, key=lambda pair: pair[0])[1]


def check_same(results: Iterable[tuple[Task, Mapping[str, Any]]]) -> None:
  """Checks that all contenders had the same examples, and the same order.

  Args:
    results: of cells' trainings, or of their tests with one number of passages.

  Raises:
    errors.UserError: two of one setting and seed had others.
  """
  first: dict[tuple[str, int], tuple[Task, str]] = {}
  for task, result in results:
    digest = result['examples_sha256']
    other, expected = first.setdefault(
      (task.setting, task.seed), (task, digest)
    )
    if digest != expected:
      raise errors.UserError(
        f'{task.path} is of other examples, or of another order, than '
        f'{other.path}; delete the cell that an older version made'
      )
