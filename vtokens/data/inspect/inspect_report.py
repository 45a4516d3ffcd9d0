"""Examples and statistics on a terminal: every piece has colour and label."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vtokens.data.assemble import Ids
from vtokens.data.inspect.inspect_examples import ExampleView, PassageView
from vtokens.data.inspect.inspect_stats import Stats
from vtokens.data.inspect.inspect_text import Reader, printable
from vtokens.data.mixture import DatasetCounts
from vtokens.data.records import Record

_START, _PASSAGE, _VIRTUAL, _PROMPT, _ANSWER, _BAD = (
  'bright_black',
  'cyan',
  'magenta',
  'green',
  'yellow',
  'red',
)
_STYLES = {'prefix': _PASSAGE, 'suffix': _PROMPT, 'answer': _ANSWER}
_BINS, _BAR = 8, 11
# Columns of the block of virtual tokens, unless they are fewer.
_TABLE = 50


def print_example(
  console: Console,
  title: str,
  view: ExampleView,
  reader: Reader,
  num_virtual_tokens: int,
) -> None:
  """Prints an example, piece by piece.

  Args:
    console: to print to.
    title: of the example.
    view: the example.
    reader: of its ids.
    num_virtual_tokens: rows of the table.
  """
  console.rule(Text(title, 'bold'), align='left', style='bold')
  console.print(
    Text(
      printable(f'{view.dataset} · id {view.id} · {view.place} · ')
      + f'prefix {view.prefix_len} + suffix {view.suffix_len} tokens',
      'dim',
    )
  )
  grid = Table.grid(padding=(0, 1), expand=True)
  grid.add_column(no_wrap=True)
  grid.add_column(ratio=1)
  if len(view.before):
    _text_piece(grid, 'start', _START, view.before, reader)
  # Of the prompt: below 0 before the passages.
  at = view.virtual_at - view.prompt_at
  if at < 0:
    _virtual_piece(grid, len(view.virtual), num_virtual_tokens)
  _passage_pieces(grid, view, reader)
  if at > 0:
    _text_piece(grid, 'prompt', _PROMPT, view.prompt[:at], reader)
  if at >= 0:
    _virtual_piece(grid, len(view.virtual), num_virtual_tokens)
  rest = view.prompt[max(at, 0) :]
  if len(rest):
    _text_piece(grid, 'prompt', _PROMPT, rest, reader)
  if len(view.targets):
    _text_piece(grid, 'answer', _ANSWER, view.targets, reader)
  else:
    about = Text('to be generated; accepted are', 'dim')
    shown = Text(printable(' | '.join(view.answers)), _ANSWER)
    _piece(grid, 'answer', _ANSWER, about, shown)
  console.print(grid)
  console.print()


def _passage_pieces(grid: Table, view: ExampleView, reader: Reader) -> None:
  answers = view.answers or (reader.plain(view.targets),)
  for number, passage in enumerate(_shown(view.passages), 1):
    own = () if passage.other else answers
    _piece(
      grid,
      f'passage {number}',
      _PASSAGE,
      _about_passage(passage),
      reader.show(passage.ids, _PASSAGE, own),
    )
  for passage in view.passages:
    if not passage.kept:
      _piece(grid, 'dropped', _BAD, _about_passage(passage))
  if not view.passages:
    _piece(grid, 'no passage', _BAD, Text('none was drawn', 'dim'))


def _virtual_piece(grid: Table, k: int, num_virtual_tokens: int) -> None:
  width = min(num_virtual_tokens, _TABLE)
  filled = -(-k * width // num_virtual_tokens)
  block = Text('█' * filled, _VIRTUAL)
  block.append('░' * (width - filled), _START)
  used = Text(f'tokens 1 to {k} of {num_virtual_tokens}', 'dim')
  _piece(grid, 'virtual', _VIRTUAL, used, block)


def _text_piece(
  grid: Table, label: str, style: str, ids: Ids, reader: Reader
) -> None:
  about = Text(f'{len(ids)} token{"s" * (len(ids) != 1)}', 'dim')
  _piece(grid, label, style, about, reader.show(ids, style))


def _piece(
  grid: Table, label: str, style: str, about: Text, body: Text | None = None
) -> None:
  name = Text(f' {label:<10} ', f'bold reverse {style}')
  grid.add_row(name, Group(about, body) if body is not None else about)


def _shown(passages: Sequence[PassageView]) -> list[PassageView]:
  return [passage for passage in passages if passage.kept]


def _about_passage(passage: PassageView) -> Text:
  origin = passage.origin
  about = Text()
  about.append(printable(f'{origin.retriever} rank {passage.rank + 1}'), 'dim')
  if passage.other:
    instead = f' · in its place one of another question, {passage.other}'
    about.append(printable(instead), _BAD)
  else:
    if origin.is_gold:
      about.append(' · gold', 'bold')
    if origin.has_answer:
      about.append(' · contains an answer', 'bold')
    else:
      about.append(' · no answer in it', 'dim')
  if not passage.kept:
    about.append(f' · {passage.body} tokens did not fit', _BAD)
  elif passage.kept < passage.body:
    about.append(
      f' · CUT to the first {passage.kept} of {passage.body} tokens',
      f'bold {_BAD}',
    )
  else:
    about.append(f' · {len(passage.ids)} tokens', 'dim')
  return about


def print_counts(
  console: Console,
  counts: Mapping[str, DatasetCounts],
  weights: Mapping[str, float],
  stats: Stats,
) -> None:
  """Prints what became of the records of each dataset, and their weights."""
  reasons = list(next(iter(counts.values())).removed)
  table = _table('Training data: examples by dataset')
  table.add_column('dataset', overflow='fold')
  for name in ('records', *reasons, 'capped', 'used', 'weight', 'drawn'):
    table.add_column(name, justify='right')
  total = np.zeros(3 + len(reasons), int)
  for name, row in counts.items():
    numbers = [
      row.records,
      *(row.removed[reason] for reason in reasons),
      row.capped,
      row.used,
    ]
    total += numbers
    table.add_row(
      printable(name),
      *(f'{n:,}' for n in numbers),
      f'{weights.get(name, 0):.1%}',
      f'{stats.datasets.get(name, 0) / stats.examples:.1%}',
      style='' if row.used else _BAD,
    )
  if len(counts) > 1:
    table.add_section()
    numbers_text = [f'{n:,}' for n in total]
    table.add_row('all', *numbers_text, '100.0%', '100.0%', style='bold')
  console.print(table)
  console.print()


def print_records(console: Console, records: Sequence[Record]) -> None:
  """Prints how many records of each dataset evaluation has."""
  datasets = collections.Counter(record.dataset for record in records)
  table = _table('Records by dataset')
  table.add_column('dataset', overflow='fold')
  table.add_column('records', justify='right')
  for name, count in sorted(datasets.items()):
    table.add_row(printable(name), f'{count:,}')
  console.print(table)
  console.print()


def print_lengths(console: Console, stats: Stats) -> None:
  """Prints a histogram of each length, side by side where there is room."""
  console.print(Text('Lengths in tokens, % of examples', 'bold'))
  blocks = [
    _histogram(name, lengths, stats.limits[name], _STYLES[name])
    for name, lengths in stats.lengths.items()
    if lengths.any()
  ]
  grid = Table.grid(padding=(0, 2))
  grid.add_row(*blocks)
  console.print(grid)
  console.print()


def _histogram(name: str, lengths: np.ndarray, limit: int, style: str) -> Text:
  low, high = int(lengths.min()), int(lengths.max())
  step = max(1, -(-(high + 1 - low) // _BINS))
  edges = np.arange(low, high + step + 1, step)
  counts, _ = np.histogram(lengths, edges)
  block = Text()
  block.append(f'{name}\n', f'bold {style}')
  middle, most = np.quantile(lengths, [0.5, 0.99]).astype(int)
  block.append(f'median {middle}, 99% {most}\n', 'dim')
  block.append(f'max {high} of {limit}', _BAD if high >= limit else 'dim')
  for start, count in zip(edges, counts, strict=False):
    share = count / len(lengths)
    label = f'{start}–{min(start + step - 1, high)}' if step > 1 else f'{start}'
    block.append(f'\n{label:>9} ')
    block.append(f'{_bar(count / counts.max()):<{_BAR}}', style)
    block.append(f'{share:4.0%}')
  return block


def _bar(share: float) -> str:
  """A bar of at most `_BAR - 1` columns, to an eighth of one."""
  eighths = round(share * (_BAR - 1) * 8)
  full, rest = divmod(max(eighths, int(share > 0)), 8)
  return '█' * full + ' ▏▎▍▌▋▊▉'[rest].strip()


def print_shapes(console: Console, stats: Stats, chosen: bool) -> None:
  """Prints how often each static shape is used, and what of it is padding.

  Args:
    console: to print to.
    stats: with the shapes.
    chosen: whether they were chosen from the data, or the config has them.
  """
  source = 'chosen from the data' if chosen else 'config.data.shapes'
  table = _table(f'Shapes of batches, {source}')
  for name in ('prefix + suffix of a row', 'batches', '', 'real tokens', ''):
    table.add_column(name, justify='left' if not name else 'right')
  batches = sum(use.batches for use in stats.shapes.values())
  for (prefix, suffix), use in stats.shapes.items():
    real = use.real / use.computed if use.computed else 0.0
    table.add_row(
      f'{prefix} + {suffix}',
      f'{use.batches:,}',
      Text(_bar(use.batches / batches), _PASSAGE),
      f'{real:.1%}' if use.batches else 'unused',
      Text(_bar(real), _VIRTUAL),
    )
  console.print(table)
  console.print()


def print_summary(
  console: Console, stats: Stats, sample: str, notes: Sequence[str]
) -> None:
  """Prints what to look at first, and what was left out.

  Args:
    console: to print to.
    stats: of the sample.
    sample: which examples they are.
    notes: lines about what was left out or removed.
  """
  n = stats.examples
  console.print(Text(f'At a glance: {sample}', 'bold'))
  rows = [
    ('show a passage that contains an answer', stats.with_answer, ''),
    ('show a passage marked as gold', stats.with_gold, ''),
    ('show no passage at all', stats.bare, _BAD),
  ]
  grid = Table.grid(padding=(0, 2))
  grid.add_column(justify='right')
  for text, count, style in rows:
    grid.add_row(f'{count / n:.1%}', Text(text, style if count else ''))
  real = sum(use.real for use in stats.shapes.values())
  if real:
    computed = sum(use.computed for use in stats.shapes.values())
    grid.add_row(f'{real / computed:.1%}', 'of the tokens computed are real')
  grid.add_row(
    f'{stats.cut:,}',
    Text(f'of {stats.passages:,} passages cut', _BAD if stats.cut else ''),
  )
  grid.add_row(
    f'{stats.dropped:,}',
    Text(
      f'of {stats.passages:,} passages dropped, as the prefix was full',
      _BAD if stats.dropped else '',
    ),
  )
  console.print(grid)
  for note in notes:
    console.print(Padding(Text(_lines(note), _BAD), (1, 0, 0, 0)))


def _lines(text: str) -> str:
  return '\n'.join(printable(line) for line in text.split('\n'))


def _table(title: str) -> Table:
  return Table(
    title=title,
    title_justify='left',
    title_style='bold',
    box=None,
    padding=(0, 1),
  )
