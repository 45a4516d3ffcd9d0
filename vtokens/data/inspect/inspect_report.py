"""Examples and statistics as labelled, coloured tables on a terminal."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vtokens.data.inspect.example_pieces import ExampleView, PassageView
from vtokens.data.inspect.example_stats import Stats
from vtokens.data.inspect.printable_ids import (
  IdPrinter,
  printable,
  printable_lines,
)
from vtokens.data.mixture import DatasetCounts
from vtokens.data.records import Record

_STYLES = {
  'start': 'bright_black',
  'passage': 'cyan',
  'virtual': 'magenta',
  'prompt': 'green',
  'answer': 'yellow',
}
_BAD = 'red'


def print_example(
  console: Console,
  title: str,
  view: ExampleView,
  printer: IdPrinter,
  num_virtual_tokens: int,
) -> None:
  """Prints an example piece by piece.

  Args:
    console: where to print.
    title: title of the example.
    view: the example.
    printer: printer of its ids.
    num_virtual_tokens: rows of the table.
  """
  [(prefix, suffix, _)] = view.lengths
  console.rule(Text(title, 'bold'), align='left', style='bold')
  place = f'{view.dataset} · id {view.id} · {view.place}'
  sizes = f' · prefix {prefix} + suffix {suffix} tokens'
  console.print(Text(printable(place) + sizes, 'dim'))
  grid = Table.grid(padding=(0, 1), expand=True)
  grid.add_column(no_wrap=True)
  grid.add_column(ratio=1)

  def add(label: str, style: str, *lines: Text) -> None:
    name = Text(f' {label:<10} ', f'bold reverse {style}')
    grid.add_row(name, Group(*lines))

  answers = view.accepted or [
    printer.plain(ids) for label, ids in view.pieces if label == 'answer'
  ]
  shown = [passage for passage in view.passages if passage.kept]
  numbered = enumerate(shown, 1)
  for label, ids in view.pieces:
    style = _STYLES[label]
    about = Text(f'{len(ids)} token{"s" * (len(ids) != 1)}', 'dim')
    if label == 'virtual':
      used = f'tokens 1 to {len(ids)} of {num_virtual_tokens}'
      add(label, style, Text(used, 'dim'))
    elif label == 'passage':
      number, passage = next(numbered)
      own = () if passage.distractor_of else answers
      text = printer.show(ids, style, own)
      add(f'passage {number}', style, _about(passage, len(ids)), text)
    else:
      add(label, style, about, printer.show(ids, style))
  if view.accepted:
    add(
      'answer',
      _STYLES['answer'],
      Text('to be generated; accepted are', 'dim'),
      Text(printable(' | '.join(view.accepted)), _STYLES['answer']),
    )
  for passage in view.passages:
    if not passage.kept:
      add('dropped', _BAD, _about(passage, 0))
  if not view.passages:
    add('no passage', _BAD, Text('none was drawn', 'dim'))
  console.print(grid)
  console.print()


def _about(passage: PassageView, size: int) -> Text:
  origin, body = passage.origin, passage.lens[0]
  about = Text(printable(f'{origin.retriever} rank {passage.rank + 1}'), 'dim')
  if passage.distractor_of:
    instead = f' · replaced by one of question {passage.distractor_of}'
    about.append(printable(instead), _BAD)
  else:
    if origin.is_gold:
      about.append(' · gold', 'bold')
    if origin.has_answer:
      about.append(' · contains an answer', 'bold')
    else:
      about.append(' · no answer in it')
  if not passage.kept:
    about.append(f' · {body} tokens did not fit', _BAD)
  elif passage.kept < body:
    cut = f' · CUT to the first {passage.kept} of {body} tokens'
    about.append(cut, f'bold {_BAD}')
  else:
    about.append(f' · {size} tokens')
  return about


def print_counts(
  console: Console,
  counts: Mapping[str, DatasetCounts],
  weights: Mapping[str, float],
  stats: Stats,
) -> None:
  """Prints the examples that each dataset has and loses, and its weight."""
  reasons = list(next(iter(counts.values())).removed)
  numbers = {
    name: [row.records, *row.removed.values(), row.capped, row.used]
    for name, row in counts.items()
  }
  shares = {
    name: [weights.get(name, 0), stats.datasets[name] / stats.examples]
    for name in counts
  }
  if len(counts) > 1:
    numbers['all'] = np.sum([*numbers.values()], axis=0).tolist()
    shares['all'] = [1, 1]
  _print_table(
    console,
    'Training data: examples by dataset',
    ['dataset', 'records', *reasons, 'capped', 'used', 'weight', 'drawn'],
    (
      [
        printable(name),
        *(f'{n:,}' for n in row),
        *(f'{share:.1%}' for share in shares[name]),
      ]
      for name, row in numbers.items()
    ),
  )


def print_records(console: Console, records: Sequence[Record]) -> None:
  """Prints the number of records of each dataset."""
  datasets = collections.Counter(record.dataset for record in records)
  rows = [[printable(name), f'{n:,}'] for name, n in sorted(datasets.items())]
  title = 'Records by dataset'
  _print_table(console, title, ['dataset', 'records'], rows)


def print_lengths(console: Console, stats: Stats) -> None:
  """Prints percentiles of each length."""
  rows: list[list[str | Text]] = []
  for name, n in stats.lengths.items():
    limit = stats.limits[name]
    *marks, most = np.percentile(n, [0, 5, 50, 95, 99, 100]).round().astype(int)
    full = Text(f'{most:,}', _BAD if most >= limit else '')
    rows.append([name, *(f'{mark:,}' for mark in marks), full, f'{limit:,}'])
  columns = ['', 'min', '5%', 'median', '95%', '99%', 'max', 'limit']
  _print_table(console, 'Lengths in tokens', columns, rows)


def print_shapes(console: Console, stats: Stats, chosen: bool) -> None:
  """Prints how often each static shape is used, and its padding.

  Args:
    console: where to print.
    stats: statistics with shapes.
    chosen: whether the shapes were chosen from the data, not by the config.
  """
  source = 'chosen from the data' if chosen else 'config.data.shapes'
  _print_table(
    console,
    f'Shapes of batches, {source}',
    ['prefix + suffix of a row', 'batches', 'real tokens'],
    (
      [
        f'{prefix} + {suffix}',
        f'{batches:,}',
        f'{real / computed:.1%}' if batches else 'unused',
      ]
      for (prefix, suffix), (batches, real, computed) in stats.shapes.items()
    ),
  )


def print_summary(
  console: Console, stats: Stats, sample: str, notes: Sequence[str]
) -> None:
  """Prints what to look at first, and what was left out.

  Args:
    console: where to print.
    stats: statistics of the sample.
    sample: which examples the sample has.
    notes: texts about what was left out or removed.
  """
  totals, n, m = stats.totals, stats.examples, stats.totals['passages']
  rows = [
    ('examples show a passage with an answer', totals['with_answer'], n, ''),
    ('examples show a passage marked as gold', totals['with_gold'], n, ''),
    ('examples show no passage at all', totals['bare'], n, _BAD),
    *(
      [('examples ask for the refusal', totals['refused'], n, '')]
      if totals['refused']
      else []
    ),
    ('passages were cut', totals['cut'], m, _BAD),
    ('passages were dropped: the prefix was full', totals['dropped'], m, _BAD),
  ]
  console.print(Text(f'At a glance: {sample}', 'bold'))
  grid = Table.grid(padding=(0, 1))
  for _ in range(3):
    grid.add_column(justify='right')
  if stats.shapes:
    _, real, computed = np.sum([*stats.shapes.values()], axis=0)
    rows.append(('computed tokens are real', real, computed, ''))
  for text, count, whole, style in rows:
    share = f'{count / whole:.1%}' if whole else ''
    note = Text(text, style if count else '')
    grid.add_row(share, f'{count:,}', f'of {whole:,}', note)
  console.print(grid)
  for text in notes:
    red = Text(printable_lines(text), _BAD)
    console.print(Padding(red, (1, 0, 0, 0)))


def _print_table(
  console: Console,
  title: str,
  columns: Sequence[str],
  rows: Iterable[Sequence[str | Text]],
) -> None:
  """Prints rows with the first column to the left, the others to the right."""
  table = Table(
    title=title,
    title_justify='left',
    title_style='bold',
    box=None,
    padding=(0, 1),
  )
  for number, name in enumerate(columns):
    justify: Literal['left', 'right'] = 'right' if number else 'left'
    table.add_column(name, justify=justify, overflow='fold')
  for row in rows:
    table.add_row(*row)
  console.print(table)
  console.print()
