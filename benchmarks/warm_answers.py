r"""Times single answers of a loaded run, as in a session of vtokens.ask.

    python benchmarks/warm_answers.py --workdir runs/quickstart

Each test question of the quickstart is asked with its two passages: first to
compile all shapes, then with passages that are not kept, then with passages
that are. Prints medians and the longest times.
"""

import statistics
import time
from collections.abc import Sequence

from absl import flags as absl_flags

import vtokens
from vtokens.data import sources
from vtokens.data.checks import BadRecords
from vtokens.data.records import Record
from vtokens.settings import flags

_WORKDIR = absl_flags.DEFINE_string('workdir', None, 'Of a run.', required=True)
_QUESTIONS = absl_flags.DEFINE_integer('questions', 12, 'Number of questions.')
_DATA = 'package:vtokens/data/quickstart/test.jsonl.gz'


def _questions() -> list[Record]:
  report = BadRecords('error', on_unanswerable='skip')
  return list(sources.read([_DATA], report=report))[: _QUESTIONS.value]


def main(argv: Sequence[str]) -> None:
  del argv
  began = time.perf_counter()
  run = vtokens.load(_WORKDIR.value)
  print(f'loaded in {time.perf_counter() - began:.1f} s')
  questions = _questions()

  def ask() -> list[float]:
    times = []
    for record in questions:
      began = time.perf_counter()
      run.answer(record.question, record.ranked()[:2])
      times.append(time.perf_counter() - began)
    return times

  def report(label: str, times: list[float]) -> None:
    print(
      f'{label}: median {statistics.median(times):.2f} s, '
      f'longest {max(times):.2f} s'
    )

  report('with compilation', ask())
  run.engine.prefixes.clear()
  report('new passages', ask())
  report('the same passages', ask())


if __name__ == '__main__':
  flags.run(main)
