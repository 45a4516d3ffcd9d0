r"""Answers of trained contenders, and their share of LoRA's gain.

    pip install -r benchmarks/requirements.txt
    python benchmarks/answer_quality.py --settings quickstart
    python benchmarks/answer_quality.py --settings seven --data DIR

The base is SmolLM2-135M-Instruct. Settings:

  quickstart  the questions of `configs/quickstart.py`, two passages each
  seven       DIR/qa/SET.{train,test}.jsonl.gz of seven sets, with passages of
              BM25 out of DIR/corpus/*.jsonl.xz: 1 to 5 in training; 3, 1 and 5
              in tests

All contenders of a setting are trained on the same examples in the same order,
which is checked. Each learning rate is trained once and validated. The rate
with the lowest validation loss is trained with the other seeds, too, and
tested. Answers of all contenders come from vtokens' evaluator, greedy; PEFT's
adapters are read into it and must have the loss that PEFT computes.

Every cell is trained, validated and tested in processes of its own. Snapshots
are in `--work`, results in `--results`. The same command goes on where it was
stopped, also on another machine that has the results alone. It prints the
finished cells, also with `--report`, which measures nothing.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import quality_cells
import quality_report
import quality_runs
import quality_settings
from absl import flags as absl_flags
from quality_cells import CONTENDERS, STAGES, Task

from vtokens.host import errors, writers
from vtokens.settings import flags

_SETTINGS = absl_flags.DEFINE_list('settings', ['quickstart'], 'Which.')
_CONTENDERS = absl_flags.DEFINE_list('contenders', list(CONTENDERS), 'Which.')
_RATES = absl_flags.DEFINE_list(
  'rates', [], 'Only these learning rates; all of a contender by default.'
)
_SEEDS = absl_flags.DEFINE_list(
  'seeds', ['0', '1'], 'Of data and draws; the first one is for the sweep.'
)
_STAGES = absl_flags.DEFINE_list(
  'stages', list(STAGES), 'Only these: train, validate, test.'
)
_PASSAGES = absl_flags.DEFINE_list(
  'passages', [], 'Passages shown in tests; those of the setting by default.'
)
_STEPS = absl_flags.DEFINE_integer(
  'steps', 0, "Of training; 0 for the setting's."
)
_VALIDATIONS = absl_flags.DEFINE_integer('validations', 4, 'Of a training.')
_VALIDATION_QUESTIONS = absl_flags.DEFINE_integer(
  'validation_questions', 105, 'To validate with.'
)
_TEST_QUESTIONS = absl_flags.DEFINE_integer(
  'test_questions', 150, 'Of each set; of all sets together in quickstart.'
)
_PRODUCTS = absl_flags.DEFINE_enum(
  'products',
  'bfloat16',
  ['bfloat16', 'float32'],
  "Factors of the layers' products in vtokens; PEFT trains in float32.",
)
_DATA = absl_flags.DEFINE_string(
  'data', '', 'Directory of the questions of seven.'
)
_WORK = absl_flags.DEFINE_string(
  'work', 'runs/answer_quality', 'Directory of snapshots and questions.'
)
_RESULTS = absl_flags.DEFINE_string(
  'results', '', "Directory of the cells' results; that of --work by default."
)
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')
_REPORT = absl_flags.DEFINE_bool('report', False, 'Only report what there is.')


def _choice(setting: str) -> quality_runs.Choice:
  return quality_runs.Choice(
    contenders=_CONTENDERS.value,
    rates=_numbers(_RATES, float),
    seeds=_numbers(_SEEDS, int),
    stages=_STAGES.value,
    passages=_numbers(_PASSAGES, int) or quality_settings.PASSAGES[setting],
  )


def _like(setting: str) -> Task:
  """The sizes of a setting's cells."""
  if setting == 'seven' and not (_DATA.value or _REPORT.value):
    raise errors.UserError(
      '--data: expected the directory of the questions of the setting seven'
    )
  return Task(
    work=_WORK.value,
    results=_RESULTS.value or _WORK.value,
    setting=setting,
    contender='',
    rate=0.0,
    seed=0,
    steps=_STEPS.value or quality_settings.STEPS[setting],
    validations=_VALIDATIONS.value,
    validation_questions=_VALIDATION_QUESTIONS.value,
    test_questions=0 if setting == 'quickstart' else _TEST_QUESTIONS.value,
    data=_DATA.value,
    products=_PRODUCTS.value,
  )


def _check_names() -> None:
  for flag, known in (
    (_SETTINGS, quality_settings.SETTINGS),
    (_CONTENDERS, CONTENDERS),
    (_STAGES, STAGES),
  ):
    unknown = [name for name in flag.value if name not in known]
    if unknown:
      raise errors.UserError(
        f'--{flag.name}: unknown: {errors.several(unknown)}; expected some of '
        f'{", ".join(known)}'
      )


def _numbers(flag: Any, kind: type[int] | type[float]) -> tuple[Any, ...]:
  try:
    return tuple(map(kind, flag.value))
  except ValueError as e:
    raise errors.UserError(f'--{flag.name}: {e}') from None


def main(argv: Sequence[str]) -> None:
  """Measures, and prints the table."""
  del argv
  _check_names()
  quality_cells.check_rates(_CONTENDERS.value, _numbers(_RATES, float))
  if not _REPORT.value:
    for setting in _SETTINGS.value:
      quality_runs.run_setting(_like(setting), _choice(setting))
  found: dict[str, Any] = {}
  for setting in _SETTINGS.value:
    like, choice = _like(setting), _choice(setting)
    sweeps = {
      name: quality_cells.cells(like, [name], (), choice.seeds[0])
      for name in CONTENDERS
    }
    summary = quality_report.summarise(sweeps, choice.seeds, choice.passages)
    found[setting] = {'steps': like.steps, **summary}
    print(f'\n{setting}, {like.steps} steps\n')
    print(quality_report.table(summary['rows']), flush=True)
  if _JSON.value:
    writers.write_json(pathlib.Path(_JSON.value), found)


if __name__ == '__main__':
  flags.run(main)
