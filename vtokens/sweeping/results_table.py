"""The table of a sweep's candidates, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.host import markdown
from vtokens.sweeping.candidates import Candidate, shown
from vtokens.sweeping.halving import Rung
from vtokens.sweeping.scores import Record


def ranked(
  candidates: Sequence[Candidate], records: Mapping[str, Record], by: str
) -> list[Candidate]:
  """Sorts candidates, best first.

  Who came further is better. Among equals the earlier candidate comes first;
  last are candidates without any score.

  Args:
    candidates: of a sweep.
    records: of each.
    by: loss, em or f1, at the last rung of each candidate.
  """

  def key(one: Candidate) -> tuple[float, ...]:
    record = records[one.name]
    if not record.scores:
      return (0.0,)
    last = record.scores[-1]
    return (-last.step, bool(record.diverged), *last.key(by))

  return sorted(candidates, key=key)


def rows(
  candidates: Sequence[Candidate],
  records: Mapping[str, Record],
  rungs: Sequence[Rung],
  by: str,
) -> list[list[str]]:
  """A header and a row for each candidate, best first.

  Columns are its name, its values, the loss at each rung, and EM and F1 at its
  last one.
  """
  fields = list(candidates[0].values)
  losses = [f'loss, step {rung.step}' for rung in rungs]
  found = [['candidate', *fields, *losses, 'EM', 'F1', 'rung']]
  for one in ranked(candidates, records, by):
    record = records[one.name]
    at = [record.at(rung.step) for rung in rungs]
    last = record.scores[-1] if record.scores else None
    rung = f'{len(record.scores)} of {len(rungs)}'
    found.append(
      [
        one.name,
        *[shown(one.values[field]) for field in fields],
        *['' if score is None else f'{score.loss:.3f}' for score in at],
        '' if last is None else f'{last.em:.1f}',
        '' if last is None else f'{last.f1:.1f}',
        f'{rung}, diverged' if record.diverged else rung,
      ]
    )
  return found


def aligned(found: Sequence[Sequence[str]]) -> str:
  """Formats rows in columns, for a terminal."""
  widths = [max(map(len, column)) for column in zip(*found, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in found
  )


def page(
  candidates: Sequence[Candidate],
  records: Mapping[str, Record],
  rungs: Sequence[Rung],
  options: Mapping[str, Any],
  winner: Mapping[str, Any] | None,
) -> str:
  """results.md: the table, how it was made, and the scores of the best."""
  header, *body = rows(candidates, records, rungs, options['by'])
  lines = [
    '# Sweep',
    '',
    'Successive halving over '
    + ', '.join(map(markdown.code, candidates[0].values))
    + f', by validation {options["by"]}: '
    + ', '.join(f'{rung.candidates} to step {rung.step}' for rung in rungs)
    + '. Loss, EM and F1 are those of the validation of lowest loss so far.',
    '',
    *[f'| {" | ".join(map(markdown.text, row))} |' for row in (header, *body)],
  ]
  lines.insert(5, '|' + ' --- |' * len(header))
  if winner is not None:
    lines += [
      '',
      f'The best is candidate {winner["name"]}, trained to its end in '
      f'{markdown.code(winner["workdir"])}; its config is '
      f'{markdown.code(winner["config"])}.',
    ]
    scores = winner['k']
    if scores:
      lines += [
        '',
        '| k | test EM | test F1 |',
        '| --: | --: | --: |',
        *[
          f'| {k} | {row["em"]:.1f} | {row["f1"]:.1f} |'
          for k, row in scores.items()
        ],
      ]
  return '\n'.join(lines) + '\n'
