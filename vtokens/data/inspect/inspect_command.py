r"""Shows what training sees: `python -m vtokens.data.inspect --config FILE`.

Examples of a step, piece by piece, then counts and weights of the datasets,
lengths, shapes, and what was cut. Needs the base's tokenizer, not its weights.
The tokenised data that it makes is what training then finds.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator

from absl import flags as absl_flags
from etils import epath
from rich.console import Console
from rich.text import Text

from vtokens import config
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.inspect import (
  inspect_examples,
  inspect_plots,
  inspect_report,
  inspect_stats,
)
from vtokens.data.inspect.inspect_examples import ExampleView
from vtokens.data.inspect.inspect_text import Reader
from vtokens.host import aside, errors, stopping
from vtokens.models import frozen_base
from vtokens.settings import flags

_EXAMPLES = absl_flags.DEFINE_integer(
  'examples', 3, 'Examples shown.', lower_bound=0
)
_STEP = absl_flags.DEFINE_integer(
  'step', 0, 'Training step whose batch is shown, from 0.', lower_bound=0
)
_SPLIT = absl_flags.DEFINE_enum(
  'split',
  'train',
  ['train', 'validation', 'test'],
  'Which data; validation and test as they are shown with the most virtual '
  'tokens.',
)
_WINDOWS = absl_flags.DEFINE_integer(
  'windows',
  8,
  'Windows (config.data.window_batches batches each), from that of the step '
  'on, whose lengths and shapes are counted, as far as the run goes.',
  lower_bound=1,
)
_WHOLE = absl_flags.DEFINE_bool('whole', False, 'Show long passages in full.')
_OUT = flags.define_path(
  'out', None, 'Directory of the picture; <workdir>/inspect if not given.'
)

# Held-out records whose lengths are counted at most.
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
  reader = Reader(tokenizer, _WHOLE.value)
  # Ids of virtual tokens start after the vocabulary, whose size only the
  # weights tell: it may be padded. Here it is but an offset that no token's id
  # reaches, and the highest id is enough for that.
  vocab_size = tokenizer.max_id + 1
  if _SPLIT.value == 'train':
    stats = _show_training(console, cfg, assembler, reader, vocab_size)
  else:
    stats = _show_held_out(console, cfg, assembler, reader, vocab_size)
  out = epath.Path(_OUT.value or epath.Path(cfg.workdir) / 'inspect')
  path = out / f'{_SPLIT.value}.png'
  title = f'{_SPLIT.value}: {stats.examples:,} examples'
  inspect_plots.plot_lengths(path, stats, title)
  console.print(Text(f'\npicture: {path}'), soft_wrap=True)


def _console() -> Console:
  # A terminal or file without these characters gets question marks.
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='replace')
  return Console(
    highlight=False,
    markup=False,
    emoji=False,
    # Rich would keep bold and underlined text.
    color_system=None if os.environ.get('NO_COLOR') else 'auto',
  )


def _limits(cfg: config.Config, assembler: Assembler) -> dict[str, int]:
  _, suffix = assembler.longest
  return {
    # Of the start and the passages, in whichever part these are.
    'prefix': cfg.data.max_prefix_tokens,
    'suffix': suffix,
    'answer': cfg.data.max_answer_tokens,
  }


def _print_examples(
  console: Console,
  views: Iterator[ExampleView],
  reader: Reader,
  cfg: config.Config,
) -> None:
  count = _EXAMPLES.value
  for number, view in enumerate(itertools.islice(views, count), 1):
    inspect_report.print_example(
      console,
      f'Example {number} of {count}',
      view,
      reader,
      cfg.virtual_tokens.num_virtual_tokens,
    )


def _show_training(
  console: Console,
  cfg: config.Config,
  assembler: Assembler,
  reader: Reader,
  vocab_size: int,
) -> inspect_stats.Stats:
  report = training_set.bad_records(cfg.data)
  # Their questions are not trained on, so they are needed here as well.
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
    # Worker processes make the same batches and take seconds to start.
    dataclasses.replace(cfg.data, workers=0),
    cfg.virtual_tokens,
    assembler,
    vocab_size,
    cfg.seed,
  )
  per_window = cfg.data.window_batches

  def views() -> Iterator[ExampleView]:
    with batches.starting_at(_STEP.value) as stream:
      for step, host in enumerate(stream, _STEP.value):
        window, at = divmod(step, per_window)
        yield from inspect_examples.of_step(
          step, host, batches.plan(window)[at], mixture, assembler, vocab_size
        )

  _print_examples(console, views(), reader, cfg)
  first = _STEP.value // per_window
  last = min((first + _WINDOWS.value) * per_window, cfg.train.num_steps) - 1
  plans = itertools.chain.from_iterable(
    map(batches.plan, itertools.count(first))
  )
  stats = inspect_stats.of_plans(
    itertools.islice(plans, last + 1 - first * per_window),
    mixture,
    batches.shapes,
    _limits(cfg, assembler),
  )
  weights = dict(zip(mixture.names, mixture.weights, strict=True))
  inspect_report.print_counts(console, mixture.counts, weights, stats)
  inspect_report.print_lengths(console, stats)
  inspect_report.print_shapes(console, stats, chosen=not cfg.data.shapes)
  inspect_report.print_summary(
    console,
    stats,
    f'{stats.examples:,} examples of steps {first * per_window} to {last}',
    [*notes, *_bad([*left_out, *report.messages])],
  )
  return stats


def _show_held_out(
  console: Console,
  cfg: config.Config,
  assembler: Assembler,
  reader: Reader,
  vocab_size: int,
) -> inspect_stats.Stats:
  split = _SPLIT.value
  report = training_set.bad_records(cfg.data)
  most = getattr(cfg.eval, f'max_{split}')
  records = training_set.read_held_out(cfg, split, most, report).records
  if not records:
    raise errors.UserError(f'config.data.{split}: no records, nothing to show')
  sample = records[:_HELD_OUT]
  views = list(
    inspect_examples.of_records(
      sample,
      assembler,
      cfg.eval,
      cfg.seed,
      vocab_size,
      answers=split == 'validation',
    )
  )
  _print_examples(console, iter(views), reader, cfg)
  stats = inspect_stats.of_views(views, _limits(cfg, assembler))
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
  """A note on records left out, if there are any."""
  if not messages:
    return []
  return [f'records left out: {len(messages):,}; the first: {messages[0]}']
