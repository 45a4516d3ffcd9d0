r"""Scores tables trained on quantised bases, there and on the original base.

    python benchmarks/quantised_quality.py --json FILE

It uses SmolLM2 and the questions of `configs/quickstart.py`. One table is
trained on each base, with the same examples and draws. Each is scored on its
own base and on the base that is not quantised. The table of the latter is
scored on all bases.
"""

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import quickstart_runs
from absl import flags as absl_flags

from vtokens.evaluation.asking.prompter import PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.settings import flags

_METHODS = absl_flags.DEFINE_list('methods', ['int8', 'int4'], 'Quantisations.')
_STEPS = absl_flags.DEFINE_integer('steps', 60, 'Of training, 8 examples each.')
_QUESTIONS = absl_flags.DEFINE_integer('questions', 200, 'To score with.')
_K = absl_flags.DEFINE_integer('k', 50, 'Virtual tokens, to score with.')
_SEED = absl_flags.DEFINE_integer('seed', 0, 'Of data and draws.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')


def main(argv: Sequence[str]) -> None:
  del argv
  tables, losses = {}, {}
  rows: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as directory:

    def setting(method: str) -> quickstart_runs.Setting:
      cfg = quickstart_runs.load_config(
        directory, _QUESTIONS.value, _SEED.value
      )
      cfg.base.quantize = method
      return quickstart_runs.Setting(cfg)

    for method in ('none', *_METHODS.value):
      print(f'training on {method}', flush=True)
      made = setting(method).train()
      next(made)
      found = []
      for _ in range(_STEPS.value):
        loss, tables[method] = next(made)
        found.append(loss)
      made.close()
      losses[method] = sum(found[-10:]) / len(found[-10:])
    for served in ('none', *_METHODS.value):
      own = setting(served)
      trained = list(tables) if served == 'none' else ['none', served]
      variants = [
        PromptVariant(
          name,
          CONDITIONS['tokens'],
          TrainedTokens(name, tables[name], own.assembler),
          _K.value,
        )
        for name in trained
      ]
      for name, scores in zip(trained, own.score(variants), strict=True):
        rows.append({'trained_on': name, 'used_on': served, **scores})
        print(
          f'trained on {name:5} used on {served:5} '
          f'EM {scores["em"]:5.1f} F1 {scores["f1"]:5.1f}',
          flush=True,
        )
  if _JSON.value:
    report = {
      'steps': _STEPS.value,
      'k': _K.value,
      'seed': _SEED.value,
      'loss_of_last_10_steps': losses,
      'rows': rows,
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  flags.run(main)
