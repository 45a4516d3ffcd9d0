r"""Shows what training sees: `python -m vtokens.data.inspect --config FILE`.

Prints the examples of one step piece by piece. Then prints the counts and
weights of the datasets, the lengths, the shapes, and what was cut. Needs the
base's tokenizer, not its weights. Training reuses the tokenised data.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from absl import flags as absl_flags
from etils import epath
from rich.console import Console
from rich.text import Text

from vtokens import config
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.inspect import (
  example_pieces,
  inspect_plots,
  inspect_report,
)
from vtokens.data.inspect.example_pieces import ExampleView
from vtokens.data.inspect.example_stats import Stats
from vtokens.data.inspect.printable_ids import IdPrinter
from vtokens.host import aside, errors, stopping
from vtokens.models import frozen_base
from vtokens.settings import flags

_EXAMPLES = absl_flags.DEFINE_integer(
  'examples', 3, 'Number of examples to show.', lower_bound=0
)
_STEP = absl_flags.DEFINE_integer(
  'step', 0, 'Training step whose batch is shown, from 0.', lower_bound=0
)
_SPLIT = absl_flags.DEFINE_enum(
  'split',
  'train',
  ['train', 'validation', 'test'],
  'Data to show. Validation and test are shown as evaluation with the most '
  'virtual tokens sees them.',
)
_WINDOWS = absl_flags.DEFINE_integer(
  'windows',
  8,
  'Windows (config.data.window_batches batches each) whose lengths and shapes '
  'are counted, from the window of the step on and up to the last step.',
  lower_bound=1,
)
_WHOLE = absl_flags.DEFINE_bool('whole', False, 'Show long passages in full.')
_OUT = flags.define_path(
  'out', None, 'Directory of the picture; default <workdir>/inspect.'
)

# At most so many held-out records are assembled and counted.
_HELD_OUT = 2048


def main(cfg: config.Config) -> None:
  """Entry point."""
  if _STEP.value and _SPLIT.value != 'train':
    raise errors.UserError('--step: only --split=train has steps')
  if _STEP.value >= cfg.train.num_steps:
    raise errors.UserError(
      f'--step={_STEP.value}: config.train.num_steps={cfg.train.num_steps}, so '
      f'the last step is {cfg.train.num_steps - 1}'
    )
  console = _console()
  tokenizer = frozen_base.tokenizer_of(cfg.base)
  assembler = Assembler.for_run(tokenizer, cfg)
  show = _show_training if _SPLIT.value == 'train' else _show_held_out
  stats = show(console, cfg, assembler)
  out = epath.Path(_OUT.value or epath.Path(cfg.workdir) / 'inspect')
  path = out / f'{_SPLIT.value}.png'
  title = f'{_SPLIT.value}: {stats.examples:,} examples'
  inspect_plots.plot_lengths(path, stats, title)
  console.print(Text(f'\npicture: {path}'), soft_wrap=True)


def _console() -> Console:
  # An encoding without a character prints a question mark, not an error.
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='replace')
  return Console(
    highlight=False,
    markup=False,
    emoji=False,
    # Rich alone would still print bold text under NO_COLOR.
    color_system=None if os.environ.get('NO_COLOR') else 'auto',
  )


def _stats(assembler: Assembler) -> Stats:
  limits, (_, suffix) = assembler.limits, assembler.longest
  answer = limits.targets
  return Stats({'prefix': limits.prefix, 'suffix': suffix, 'answer': answer})


def _print_examples(
  console: Console,
  cfg: config.Config,
  assembler: Assembler,
  views: Iterable[ExampleView],
) -> None:
  count = _EXAMPLES.value
  printer = IdPrinter(assembler.encoder.tokenizer, _WHOLE.value)
  rows = cfg.virtual_tokens.num_virtual_tokens
  for number, view in enumerate(itertools.islice(views, count), 1):
    title = f'Example {number} of {count}'
    inspect_report.print_example(console, title, view, printer, rows)


def _show_training(
  console: Console, cfg: config.Config, assembler: Assembler
) -> Stats:
  report = training_set.bad_records(cfg.data)
  # Training leaves their questions out.
  held_out = [
    training_set.read_held_out(cfg, field, most, report)
    for field, most in (
      ('validation', cfg.eval.max_validation),
      ('test', cfg.eval.max_test),
    )
  ]
  notes: list[str] = []
  mixture, left_out = aside.call(
    lambda: training_set.open_training_set(
      cfg, assembler, held_out, notes.append, stopping.check
    ),
    stopping.check,
  )
  batches = pipeline.TrainBatches(
    mixture,
    # Worker processes would make the same batches, after seconds of start.
    dataclasses.replace(cfg.data, workers=0),
    cfg.virtual_tokens,
    assembler,
    example_pieces.first_virtual_id(assembler),
    cfg.seed,
  )
  per_window = cfg.data.window_batches

  def views() -> Iterator[ExampleView]:
    with batches.starting_at(_STEP.value) as stream:
      for step, host in enumerate(stream, _STEP.value):
        window, at = divmod(step, per_window)
        planned = batches.plan(window)[at]
        yield from example_pieces.of_step(
          step, host.batch, planned, mixture, assembler
        )

  _print_examples(console, cfg, assembler, views())
  first = _STEP.value // per_window
  last = min((first + _WINDOWS.value) * per_window, cfg.train.num_steps) - 1
  stats = _stats(assembler)
  stats.shapes = {shape: np.zeros(3, int) for shape in batches.shapes}
  plans = map(batches.plan, itertools.count(first))
  for planned in itertools.islice(
    itertools.chain.from_iterable(plans), last + 1 - first * per_window
  ):
    stats.add_batch(planned, mixture)
  weights = dict(zip(mixture.names, mixture.weights, strict=True))
  inspect_report.print_counts(console, mixture.counts, weights, stats)
  inspect_report.print_lengths(console, stats)
  inspect_report.print_shapes(console, stats, chosen=not cfg.data.shapes)
  sample = (
    f'{stats.examples:,} examples of steps {first * per_window} to {last}'
  )
  notes += _bad([*left_out, *report.messages])
  inspect_report.print_summary(console, stats, sample, notes)
  return stats


def _show_held_out(
  console: Console, cfg: config.Config, assembler: Assembler
) -> Stats:
  split = _SPLIT.value
  report = training_set.bad_records(cfg.data)
  most = getattr(cfg.eval, f'max_{split}')
  records = training_set.read_held_out(cfg, split, most, report).records
  if not records:
    raise errors.UserError(f'config.data.{split}: no records, nothing to show')
  sample = records[:_HELD_OUT]
  views = [
    example_pieces.of_record(
      record, assembler, cfg.eval, cfg.seed, with_answer=split == 'validation'
    )
    for record in sample
  ]
  _print_examples(console, cfg, assembler, views)
  stats = _stats(assembler)
  for view in views:
    stats.add(view)
  inspect_report.print_records(console, records)
  inspect_report.print_lengths(console, stats)
  inspect_report.print_summary(
    console,
    stats,
    f'the first {len(sample):,} of {len(records):,} {split} records',
    _bad(report.messages),
  )
  return stats


def _bad(messages: list[str]) -> list[str]:
  if not messages:
    return []
  return [f'records left out: {len(messages):,}; the first: {messages[0]}']


if __name__ == '__main__':
  flags.run_config(
    main, config.Config, config.validate, 'configs/quickstart.py'
  )
